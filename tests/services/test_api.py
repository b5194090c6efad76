"""services/api.py: every route, every kind of bad input, what degrades and what fails."""

import json
import time
from typing import Any

import msgspec
import pytest

from ranker import events, evidence
from ranker.events import Ranking
from services.settings import Service as Defaults
from services.tokens import Scope
from tests.services.conftest import ITEMS, NOW_MS, Service

IDS = [item.id for item in ITEMS]
RANK = {"user": "ann", "items": IDS}


def click(index: int = 0, **changes: Any) -> dict[str, Any]:
    """An interaction event."""
    event = {
        "event": "interaction",
        "id": f"e{index}",
        "timestamp": NOW_MS,
        "user": "ann",
        "item": "i0",
        "type": "click",
    }
    return {**event, **changes}


def assert_problem(answer: Any, status: int, thing: str = "") -> dict[str, Any]:
    """An RFC 9457 document that names thing, value and remedy."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "thing"} <= body.keys()
    assert body["status"] == status
    assert body["type"].startswith("urn:plurank:")
    assert thing in body["thing"]
    return body


# -- ranking ---------------------------------------------------------------------------------------------------


def test_a_ranking_names_everything_a_caller_needs(service: Service) -> None:
    body = service.call("POST", "/v1/rank", {**RANK, "limit": 5}, scope="rank").json()
    assert [item["position"] for item in body["items"]] == list(range(5))
    assert {item["id"] for item in body["items"]} <= set(IDS)
    assert set(body["items"][0]["probabilities"]) == {"click", "like"}
    assert (body["degraded"], body["reason"]) == (False, None)
    assert body["version"] == service.replica.serving.version
    assert service.replica.signer.verify(body["ranking"], "ann") == body["version"]
    assert body["timings_ms"]["total"] > 0


def test_a_served_slate_is_logged_as_it_was_served(service: Service) -> None:
    sent = {
        **RANK,
        "limit": 4,
        "fields": {"device": "tv"},
        "session": "s1",
        "items": [*IDS[1:], {"id": "i0", "fields": {"genres": ["drama"]}}],
    }
    body = service.call("POST", "/v1/rank", sent).json()
    service.settle(lambda: bool(service.log.events))
    (event,) = service.log.events
    assert isinstance(event, Ranking)
    assert (event.id, event.version, event.user, event.session) == (body["ranking"], body["version"], "ann", "s1")
    assert events.fields_of(event.fields) == {"device": "tv"}
    assert [shown.id for shown in event.items] == [item["id"] for item in body["items"]]
    assert events.positions_of(event) == [0, 1, 2, 3]
    assert [shown.propensity for shown in event.items] == [item["propensity"] for item in body["items"]]
    assert all(len(shown.probabilities or ()) == 2 for shown in event.items)


def test_without_a_limit_every_candidate_is_placed_and_duplicates_count_once(service: Service) -> None:
    body = service.call("POST", "/v1/rank", {"user": "ann", "items": [*IDS, "i0", "never-seen"]}).json()
    assert sorted(item["id"] for item in body["items"]) == sorted([*IDS, "never-seen"])
    assert [removed["id"] for removed in body["removed"]] == ["i0"]


def test_recommend_finds_items_in_the_catalogue(service: Service) -> None:
    body = service.call("POST", "/v1/recommend", {"user": "ann", "limit": 3}).json()
    assert len(body["items"]) == 3
    assert {item["id"] for item in body["items"]} <= set(IDS)


def test_an_empty_slate_is_an_answer_but_no_event(empty: Service) -> None:
    empty.version()
    empty.settle(lambda: empty.call("GET", "/readyz").status_code == 200)
    user = evidence.fold(evidence.EMPTY, events.decode(msgspec.json.encode(click())))
    empty.store.users["ann"] = msgspec.structs.replace(
        user, history=tuple(msgspec.structs.replace(user.history[0], item=one) for one in IDS)
    )
    answer = empty.call("POST", "/v1/recommend", {"user": "ann"})
    assert (answer.status_code, answer.json()["items"], answer.json()["degraded"]) == (200, [], False)
    empty.replica.outbox.close()
    assert empty.log.events == []


def test_explain_says_more(service: Service) -> None:
    service.log.append(events.decode(msgspec.json.encode(click())))
    body = service.call("POST", "/v1/rank", {**RANK, "explain": True, "weights": {"like": -1}, "calibration": 1}).json()
    assert (body["weights"]["click"], body["weights"]["like"]) == (1.0, -1.0)
    assert body["items"][0]["interests"]
    assert body["evidence"]["history"] == 1
    assert body["strength"] == 1
    assert body["exposure_miscalibration"] >= 0


def test_only_an_admin_lifts_the_guard(service: Service) -> None:
    for path, body in (("/v1/rank", RANK), ("/v1/recommend", {"user": "ann"})):
        plain = service.call("POST", path, {**body, "explain": True}, scope="rank").json()
        assert plain["interventions"] == []
        assert plain["sycophancy_gap"] == 0  # nothing is known of her
        refused = service.call("POST", path, {**body, "guard": False}, scope="rank")
        assert refused.status_code == 403
        assert (refused.json()["thing"], "admin" in refused.json()["remedy"]) == ("guard", True)
        lifted = service.call("POST", path, {**body, "guard": False, "explain": True}, scope="admin").json()
        assert lifted["sycophancy_gap"] is None


def test_what_the_guard_did_is_in_the_answer_and_counted(service: Service) -> None:
    long_ago = NOW_MS - 200 * 86_400_000
    for sent in (click(1, item="i0", timestamp=long_ago), click(2, item="i1")):
        service.log.append(events.decode(msgspec.json.encode(sent)))
    (drift,) = service.call("POST", "/v1/rank", RANK).json()["interventions"]
    assert drift["kind"] == "drift"
    assert drift["numbers"]["distance_after"] == drift["numbers"]["bound"] < drift["numbers"]["distance_before"]
    counted = service.replica.telemetry.text()
    assert 'plurank_guard_interventions_total{kind="drift"} 1.0' in counted


def test_pinned_items_stand_first_and_excluded_ones_nowhere(service: Service) -> None:
    pinned, excluded = IDS[-1], IDS[0]
    asked = {"pinned": [pinned], "excluded": [excluded], "calibration": {"target": 0.2, "order": 0.5}}
    for path, body in (("/v1/rank", RANK), ("/v1/recommend", {"user": "ann"})):
        items = service.call("POST", path, {**body, **asked}).json()["items"]
        assert (items[0]["id"], items[0]["propensity"]) == (pinned, 1.0)
        assert excluded not in [item["id"] for item in items]


def test_a_replica_takes_up_new_items(service: Service) -> None:
    service.store.items.append(msgspec.structs.replace(ITEMS[0], id="fresh"))

    def recommended() -> set[str]:
        body = service.call("POST", "/v1/recommend", {"user": "ann", "limit": 50}).json()
        return {item["id"] for item in body["items"]}

    service.settle(lambda: "fresh" in recommended())


# -- bad requests ----------------------------------------------------------------------------------------------

BAD = {
    "malformed JSON": (b'{"user": "ann", "items": [', 400, "body"),
    "not JSON at all": (b"\xff\xfe", 400, "body"),
    "NaN": (b'{"user": "ann", "items": ["a"], "calibration": NaN}', 400, "body"),
    "an infinite weight": (b'{"user": "ann", "items": ["a"], "weights": {"click": 1e999}}', 422, "weights"),
    "an infinite field": (b'{"user": "ann", "items": ["a"], "fields": {"x": -1e999}}', 422, "fields"),
    "a wrong type": ({"user": 7, "items": ["a"]}, 422, "user"),
    "an array": ([1, 2], 422, "body"),
    "no user": ({"items": ["a"]}, 422, "body"),
    "an empty user": ({"user": "", "items": ["a"]}, 422, "user"),
    "no items": ({"user": "ann"}, 422, "body"),
    "an empty list": ({"user": "ann", "items": []}, 422, "items"),
    "10,001 candidates": ({"user": "ann", "items": [f"x{n}" for n in range(10_001)]}, 422, "items"),
    "an unknown objective": ({**RANK, "weights": {"clik": 1}}, 422, "weights"),
    "a lambda over one": ({**RANK, "calibration": 1.5}, 422, "calibration"),
    "two lambdas": ({**RANK, "calibration": {"target": 0.1, "personal": True}}, 422, "calibration.target"),
    "a pin that is no candidate": ({**RANK, "pinned": ["zz"]}, 422, "pinned"),
    "a pin that is excluded": ({**RANK, "pinned": ["i0"], "excluded": ["i0"]}, 422, "pinned"),
    "a limit of zero": ({**RANK, "limit": 0}, 422, "limit"),
    "a misspelt key": ({**RANK, "limits": 5}, 422, "body"),
    "a foreign evidence token": ({**RANK, "evidence_token": "AAAA"}, 422, "evidence_token"),
    "a deep nesting": (b'{"user":' + b"[" * 100_000, 422, "user"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_has_its_defined_answer_and_harms_nothing(service: Service, name: str) -> None:
    body, status, thing = BAD[name]
    assert_problem(service.call("POST", "/v1/rank", body), status, thing)
    assert service.call("POST", "/v1/rank", RANK).status_code == 200


def test_a_misspelt_key_is_answered_with_the_nearest(service: Service) -> None:
    problem = assert_problem(service.call("POST", "/v1/rank", {**RANK, "limits": 5}), 422)
    assert (problem["value"], problem["remedy"]) == ("limits", "did you mean 'limit'?")


def test_a_body_over_the_limit_is_413(service: Service) -> None:
    body = b'{"user": "' + b"a" * Defaults().body_limit + b'"}'
    for path in ("/v1/rank", "/v1/feedback"):
        assert_problem(service.call("POST", path, body), 413, "body")


def test_an_unknown_user_gets_the_populations_taste(service: Service) -> None:
    body = service.call("POST", "/v1/rank", {"user": "nobody-knows-me", "items": IDS}).json()
    assert (body["degraded"], set(body["evidence"].values())) == (False, {0})


def test_10000_candidates_are_ranked(service: Service) -> None:
    answer = service.call("POST", "/v1/rank", {"user": "ann", "items": [f"x{n}" for n in range(10_000)], "limit": 10})
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 10


# -- who may ---------------------------------------------------------------------------------------------------

OPEN = {"/v1/schema", "/healthz", "/readyz", "/docs", "/openapi.json"}
SCOPES: dict[tuple[str, str], tuple[Scope, ...]] = {
    ("POST", "/v1/rank"): ("rank",),
    ("POST", "/v1/recommend"): ("rank",),
    ("POST", "/v1/feedback"): ("feedback", "ingest"),
    ("GET", "/v1/users/ann/question"): ("rank",),
    ("POST", "/v1/users/ann/answers"): ("feedback",),
    ("GET", "/v1/users/ann/summary"): ("rank",),
    ("PUT", "/v1/users/ann/summary"): ("feedback",),
    ("GET", "/v1/users/ann/taste"): ("rank",),
    ("DELETE", "/v1/users/ann"): ("admin",),
    ("GET", "/v1/models"): ("admin", "metrics"),
    ("POST", "/v1/models/v/promote"): ("admin",),
    ("POST", "/v1/models/v/rollback"): ("admin",),
    ("GET", "/v1/fairness"): ("metrics",),
    ("GET", "/metrics"): ("metrics",),
    ("GET", "/v1/metrics/targets"): ("metrics",),
}


@pytest.mark.parametrize("path", sorted(OPEN))
def test_some_routes_need_no_token(service: Service, path: str) -> None:
    assert service.call("GET", path, scope=None).status_code == 200


@pytest.mark.parametrize(("method", "path"), SCOPES)
def test_all_others_need_the_token_of_their_scope(service: Service, method: str, path: str) -> None:
    answer = service.call(method, path, scope=None)
    assert_problem(answer, 401, "Authorization")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert_problem(service.call(method, path, scope=None, headers={"Authorization": "Bearer no"}), 401, "token")
    scopes: tuple[Scope, ...] = ("rank", "feedback", "ingest", "metrics")
    for scope in scopes:
        status = service.call(method, path, scope=scope).status_code
        assert (status in (401, 403)) == (scope not in SCOPES[method, path]), scope
        if scope not in SCOPES[method, path]:
            assert status == 403


def test_a_wrong_token_is_refused_before_the_body_is_looked_at(service: Service) -> None:
    assert_problem(service.call("POST", "/v1/rank", b"{" * 9_000_000, scope="feedback"), 403)


# -- feedback --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        msgspec.json.encode([click(0), click(1)]),
        b"\n".join(msgspec.json.encode(click(n)) for n in range(2)),
        b"\r\n".join([b"", msgspec.json.encode(click(0)), b"", msgspec.json.encode(click(1)), b""]),
    ],
)
def test_feedback_comes_as_an_array_or_as_lines(service: Service, body: bytes) -> None:
    answer = service.call("POST", "/v1/feedback", body, scope="feedback")
    assert answer.status_code == 200
    assert (answer.json()["accepted"], answer.json()["refused"]) == (2, 0)
    assert [event.id for event in service.log.events] == ["e0", "e1"]


def test_one_event_is_enough_and_pretty_printing_is_no_harm(service: Service) -> None:
    answer = service.call("POST", "/v1/feedback", json.dumps(click(), indent=2).encode(), scope="feedback")
    assert answer.json()["results"] == [{"index": 0, "status": "accepted", "id": "e0"}]


def test_feedback_on_a_served_slate_is_believed_for_its_user_only(service: Service) -> None:
    ranking = service.call("POST", "/v1/rank", RANK).json()["ranking"]
    assert service.call("POST", "/v1/feedback", click(ranking=ranking), scope="feedback").status_code == 200
    answer = service.call("POST", "/v1/feedback", click(1, ranking=ranking, user="bob"), scope="feedback")
    assert_problem(answer, 422, "ranking")
    forged = ranking[:-6] + "AAAAAA"
    assert_problem(service.call("POST", "/v1/feedback", click(2, ranking=forged), scope="feedback"), 422, "ranking")
    assert service.call("POST", "/v1/feedback", click(3, ranking="theirs-1"), scope="feedback").status_code == 200


def test_bad_events_do_not_harm_their_neighbours(service: Service) -> None:
    lines = [
        msgspec.json.encode(click(0)),
        b'{"event": "interaction", "id": "half',
        msgspec.json.encode({**click(2), "id": ""}),
        msgspec.json.encode({**click(3), "timestamp": NOW_MS + 3_600_000}),
        msgspec.json.encode(click(4)).replace(b'"click"', b"NaN"),
        msgspec.json.encode({**click(5), "event": "party"}),
        msgspec.json.encode(click(6, ranking="plk_forged")),
        msgspec.json.encode({key: value for key, value in click(7).items() if key != "id"}),
        b'{"event":"interaction","id":"e8","timestamp":1,"user":"u","item":"i","type":"t","value":1e999}',
        msgspec.json.encode(click(9)),
    ]
    answer = service.call("POST", "/v1/feedback", b"\n".join(lines), scope="feedback")
    body = answer.json()
    assert (answer.status_code, body["accepted"], body["refused"]) == (200, 2, 8)
    assert [result["status"] == "accepted" for result in body["results"]] == [True, *[False] * 8, True]
    assert [result["index"] for result in body["results"]] == list(range(10))
    assert all(result["reason"] and result["thing"] for result in body["results"][1:9])
    assert [event.id for event in service.log.events] == ["e0", "e9"]


@pytest.mark.parametrize(
    ("body", "status", "thing"),
    [
        (b"", 422, "body"),
        (b"[]", 422, "body"),
        (b"{", 400, "body"),
        (b"nonsense", 400, "body"),
        (b"[1, 2", 400, "body"),
        (b"7", 422, "event"),
        (msgspec.json.encode(click(timestamp=NOW_MS + 10**9)), 422, "timestamp"),
        (msgspec.json.encode(click(timestamp="soon")), 422, "timestamp"),
        (msgspec.json.encode(click(value="much")), 422, "event"),
        (msgspec.json.encode(click(item="x" * 600)), 422, "event"),
    ],
)
def test_feedback_of_which_nothing_can_be_taken_is_a_problem(
    service: Service, body: bytes, status: int, thing: str
) -> None:
    assert_problem(service.call("POST", "/v1/feedback", body), status, thing)
    assert service.log.events == []


def test_what_is_more_than_feedback_needs_the_ingest_scope(service: Service) -> None:
    slate = {"event": "ranking", "id": "r1", "timestamp": NOW_MS, "user": "ann", "items": [{"id": "i0"}]}
    item = {"event": "item", "id": "t1", "timestamp": NOW_MS, "item": "i0"}
    for event in (slate, item):
        problem = assert_problem(service.call("POST", "/v1/feedback", event, scope="feedback"), 422, "event")
        assert "ingest" in problem["remedy"]
        assert service.call("POST", "/v1/feedback", event, scope="ingest").status_code == 200


@pytest.mark.parametrize("claim", [{"id": "plk_mine"}, {"version": "v1"}, {"arm": "canary"}])
def test_nobody_can_pass_a_slate_off_as_served_here(service: Service, claim: dict[str, str]) -> None:
    slate = {"event": "ranking", "id": "r1", "timestamp": NOW_MS, "user": "ann", "items": [{"id": "i0"}], **claim}
    assert_problem(service.call("POST", "/v1/feedback", slate, scope="ingest"), 422, "ranking")


def test_a_log_that_is_away_is_503_with_a_time_to_come_back(service: Service) -> None:
    service.log.away = True
    answer = service.call("POST", "/v1/feedback", click())
    assert_problem(answer, 503, "log")
    assert answer.headers["retry-after"] == "1"


def test_a_log_that_does_not_answer_is_503_within_the_wait(service: Service) -> None:
    service.log.slow = True
    begun = time.monotonic()
    assert_problem(service.call("POST", "/v1/feedback", [click(n) for n in range(3)]), 503, "log")
    assert time.monotonic() - begun < 3.0


# -- reading one's own writes, and what is missing -------------------------------------------------------------


def test_an_evidence_token_waits_for_its_write(service: Service) -> None:
    token = service.call("POST", "/v1/feedback", [click(0), click(1)]).json()["evidence_token"]
    body = service.call("POST", "/v1/rank", {**RANK, "evidence_token": token}).json()
    assert (body["degraded"], body["evidence"]["history"]) == (False, 2)
    assert [(place.log, place.partition, place.offset) for place in service.store.waited] == [("fake-log", 0, 1)]
    service.settle(lambda: len(service.log.events) == 3)  # the slate is logged, and moves the offset no more
    service.store.offsets.clear()
    body = service.call("POST", "/v1/rank", {**RANK, "evidence_token": token}).json()
    assert body["degraded"]
    assert "evidence token" in body["reason"]


def test_without_the_store_ranking_goes_on_with_the_populations_taste(service: Service) -> None:
    service.store.away = True
    asked = service.store.asked
    for _ in range(3):
        answer = service.call("POST", "/v1/rank", RANK)
        assert answer.status_code == 200
        assert answer.json()["degraded"]
        assert "store" in answer.json()["reason"]
    assert service.store.asked == asked + 1  # a store that failed is left alone for a second
    for path in ("/v1/fairness", "/v1/metrics/targets"):
        assert_problem(service.call("GET", path), 503, "store")
    assert service.call("GET", "/metrics").status_code == 200
    assert service.call("GET", "/readyz").status_code == 200


def test_slates_wait_for_a_log_that_is_away_and_are_dropped_only_when_the_queue_is_full(service: Service) -> None:
    service.log.away = True
    answers = [service.call("POST", "/v1/rank", {**RANK, "limit": 1}).json() for _ in range(53)]
    assert [answer["degraded"] for answer in answers] == [False] * 50 + [True] * 3
    assert "log" in answers[-1]["reason"]
    assert service.replica.outbox.dropped == 3
    service.log.away = False
    service.settle(lambda: len(service.log.events) == 50, timeout=4.0)
    assert {event.id for event in service.log.events} == {answer["ranking"] for answer in answers[:50]}


# -- versions --------------------------------------------------------------------------------------------------


def test_before_the_first_version_it_is_alive_but_not_ready(empty: Service) -> None:
    assert empty.call("GET", "/healthz").json() == {"status": "alive"}
    for method, path, body in (("GET", "/readyz", None), ("POST", "/v1/rank", RANK)):
        answer = empty.call(method, path, body)
        assert "plurank" in assert_problem(answer, 503, "version")["remedy"]
        assert answer.headers["retry-after"] == "1"
    assert empty.call("POST", "/v1/feedback", click()).status_code == 200
    empty.version()
    empty.settle(lambda: empty.call("GET", "/readyz").status_code == 200)


def test_a_damaged_version_is_not_served_and_the_old_one_stays(service: Service) -> None:
    first = service.replica.serving.version
    second = service.version(seed=2)
    weights = service.settings.registry_dir / "versions" / second / "weights.safetensors"
    service.settle(lambda: service.replica.serving.version == second)
    service.call("POST", f"/v1/models/{first}/rollback")
    service.settle(lambda: service.replica.serving.version == first)
    service.replica._before = None  # as if this replica had just started
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    pointer = service.settings.registry_dir / "current.json"
    pointer.write_bytes(pointer.read_bytes().replace(first.encode(), second.encode(), 1))
    time.sleep(0.5)
    assert service.call("POST", "/v1/rank", RANK).json()["version"] == first


# -- what it shows ---------------------------------------------------------------------------------------------


def test_the_schema_is_the_contract(service: Service) -> None:
    assert service.call("GET", "/v1/schema", scope=None).json() == json.loads(msgspec.json.encode(events.schema()))


def test_unknown_routes_and_methods_are_problems(service: Service) -> None:
    assert_problem(service.call("GET", "/v1/nothing"), 404, "route")
    answer = service.call("GET", "/v1/rank")
    assert_problem(answer, 405, "method")
    assert answer.headers["allow"] == "POST"


def test_a_fault_of_ours_is_a_problem_without_details(service: Service) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a secret")

    service.registry.versions = fail  # type: ignore[assignment, method-assign]
    answer = service.call("GET", "/v1/models")
    assert_problem(answer, 500, "server")
    assert "secret" not in answer.text
