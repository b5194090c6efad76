"""services/people.py through HTTP: questions and answers, the taste, being forgotten, and every kind of bad input."""

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker import events, evidence
from ranker.events import Comparison, Forget, Summary
from ranker.interview import Turn
from services import asking
from services.tokens import Scope
from tests.services.conftest import ITEMS, NOW_MS, Service
from tests.services.test_api import IDS, RANK, assert_problem, click

ANN = "/v1/users/ann"


def ask(service: Service, user: str = "ann") -> dict[str, Any]:
    answer = service.call("GET", f"/v1/users/{user}/question", scope="rank")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def reply(service: Service, *answers: dict[str, Any], user: str = "ann", scope: Scope = "feedback") -> Any:
    return service.call("POST", f"/v1/users/{user}/answers", {"answers": list(answers)}, scope=scope)


def send(service: Service, *answers: dict[str, Any]) -> dict[str, Any]:
    answer = reply(service, *answers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# -- questions and answers -------------------------------------------------------------------------------------


def test_a_question_says_all_that_a_page_needs(service: Service) -> None:
    body = ask(service)
    question = body["question"]
    assert (body["user"], body["degraded"], body["reason"]) == ("ann", False, None)
    assert question["text"].startswith("Which of these two would you rather")
    assert {item["id"] for item in question["items"]} <= set(IDS)
    assert question["items"][0]["fields"]["genres"]
    assert [choice["answer"].get("outcome", "preferred") for choice in question["choices"]] == [
        "preferred", "preferred", "both", "neither", "skip",
    ]  # fmt: skip
    assert body["progress"] == {
        "answers": 0, "effective": 0.0, "uncertainty": 1.0, "enough": False, "reason": body["progress"]["reason"],
    }  # fmt: skip
    assert ask(service)["question"]["items"] == question["items"]


def test_each_choice_can_be_sent_as_it_stands(service: Service) -> None:
    question = ask(service)["question"]
    for choice in question["choices"]:
        body = send(service, choice["answer"])
        assert body["results"][0]["status"] == "accepted"
        event = service.log.said[-1]
        assert isinstance(event, Comparison)
        assert {event.preferred, event.over} == {item["id"] for item in question["items"]}
        assert events.fields_of(event.fields) == {
            "shown_first": question["items"][0]["id"],
            "wording": question["wording"],
        }
        assert event.question == question["id"][: asking.SHORT]
    # the last one counts; the four before it were replaced
    assert [answer.outcome for answer in service.store.users["ann"].answers] == ["skip"]


def test_what_a_person_would_skip_is_not_what_she_prefers(service: Service) -> None:
    signer = service.replica.signer
    turn = Turn(number=1, items=("i0", "i1"), wording="skip", again=False, gain=0.1)
    name = asking.ask(signer, "ann", turn, NOW_MS)
    users = (f"u{n}" for n in range(200))
    question = next(found for user in users if (found := ask(service, user)["question"])["wording"] == "skip")
    first, second = (item["id"] for item in question["items"])
    assert [choice["answer"]["preferred"] for choice in question["choices"][:2]] == [second, first]
    assert question["text"] == "Which of these two would you rather skip?"
    send(service, {"question": name, "preferred": "i1"})
    assert isinstance(event := service.log.said[-1], Comparison)
    assert (event.preferred, event.over) == ("i1", "i0")


def test_the_reply_holds_the_next_question_with_the_answer_counted(service: Service) -> None:
    first = ask(service)["question"]
    body = send(service, first["choices"][0]["answer"])
    assert body["progress"]["answers"] == 1
    assert body["progress"]["uncertainty"] < 1
    assert body["question"]["number"] == 2
    pairs = [{item["id"] for item in question["items"]} for question in (first, body["question"])]
    assert pairs[0] != pairs[1]
    asked = ask(service)
    assert asked["question"]["items"] == body["question"]["items"]
    assert asked["progress"] == body["progress"]
    assert body["results"][0]["id"] == service.log.said[-1].id


def test_ten_answers_move_the_ranking_and_ask_one_pair_again(service: Service) -> None:
    before = service.call("POST", "/v1/rank", RANK).json()["items"]
    body, again = ask(service), 0
    for number in range(1, 11):
        question = body["question"]
        assert question["number"] == number
        again += question["again"]
        comedy = [choice for choice, item in zip(question["choices"], question["items"], strict=False)
                  if "comedy" in item["fields"]["genres"]]  # fmt: skip
        body = send(service, (comedy or question["choices"])[0]["answer"])
    assert again == 2
    assert body["progress"]["answers"] == 10
    after = service.call("POST", "/v1/rank", {**RANK, "evidence_token": body["evidence_token"]}).json()
    assert after["evidence"]["answers"] == 10
    assert {item["id"]: item["score"] for item in after["items"]} != {item["id"]: item["score"] for item in before}


def test_a_repeated_request_counts_once_and_a_changed_mind_replaces(service: Service) -> None:
    question = ask(service)["question"]
    one, other = (choice["answer"] for choice in question["choices"][:2])
    first = send(service, one)["results"][0]
    second = send(service, one)
    assert second["results"] == [{"index": 0, "status": "known", "id": first["id"]}]
    assert second["evidence_token"] is None
    assert len(service.log.said) == 1
    third = send(service, other)["results"][0]
    assert third["replaces"] == first["id"]
    assert [answer.id for answer in service.store.users["ann"].answers] == [third["id"]]


def test_an_answer_is_taken_back_and_may_be_given_again(service: Service) -> None:
    start = ask(service)
    answer = start["question"]["choices"][0]["answer"]
    name = send(service, answer)["results"][0]["id"]
    body = send(service, {"undo": name})
    assert body["results"] == [{"index": 0, "status": "undone", "id": name}]
    assert body["progress"] == start["progress"]
    assert body["question"]["items"] == start["question"]["items"]
    assert service.store.users["ann"].answers == ()
    again = send(service, answer)["results"][0]
    assert again["status"] == "accepted"
    assert again["id"] != name
    assert [one.id for one in service.store.users["ann"].answers] == [again["id"]]
    assert send(service, {"undo": again["id"]})["progress"]["answers"] == 0


def test_a_pair_asked_again_on_purpose_counts_a_second_time(service: Service) -> None:
    body = ask(service)
    while not body["question"]["again"]:
        body = send(service, body["question"]["choices"][0]["answer"])
    answer = body["question"]["choices"][0]["answer"]
    count = len(service.store.users["ann"].answers)
    send(service, answer)
    assert len(service.store.users["ann"].answers) == count + 1
    assert send(service, answer)["results"][0]["status"] == "known"
    assert len(service.store.users["ann"].answers) == count + 1


def test_several_answers_come_in_one_request(service: Service) -> None:
    signer = service.replica.signer
    names = [
        asking.ask(
            signer, "ann", Turn(number=n, items=(f"i{n}", f"i{n + 1}"), wording="rather", again=False, gain=0), 1
        )
        for n in range(4)
    ]
    answers = [{"question": name, "preferred": f"i{n}"} for n, name in enumerate(names)]
    body = send(service, *answers)
    assert [taken["index"] for taken in body["results"]] == [0, 1, 2, 3]
    assert body["progress"]["answers"] == 4
    assert body["evidence_token"]
    body = send(service, {"undo": body["results"][3]["id"]}, answers[3], answers[3])
    assert [taken["status"] for taken in body["results"]] == ["undone", "accepted", "known"]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.uuids())
def test_whatever_is_answered_taking_it_all_back_leaves_a_newcomer(
    service: Service, picks: list[int], user: uuid.UUID
) -> None:
    start = body = ask(service, str(user))
    taken = []
    for pick in picks:
        body = reply(service, body["question"]["choices"][pick]["answer"], user=str(user)).json()
        taken.append({"undo": body["results"][0]["id"]})
    assert body["progress"]["answers"] == sum(pick < 4 for pick in picks)
    body = reply(service, *taken, user=str(user)).json()
    assert body["progress"] == start["progress"]
    assert body["question"]["items"] == start["question"]["items"]


# -- bad answers -----------------------------------------------------------------------------------------------


def bad_answers(service: Service) -> dict[str, tuple[Any, int, str, str]]:
    question = ask(service)["question"]
    name, first = question["id"], question["items"][0]["id"]
    theirs = ask(service, "bob")["question"]["id"]
    ranking = service.call("POST", "/v1/rank", RANK).json()["ranking"]
    return {
        "no answers": ({"answers": []}, 422, "answers", ""),
        "no list": ({"question": name, "preferred": first}, 422, "body", "answers"),
        "too many": ({"answers": [{"undo": "x"}] * 101}, 422, "answers", ""),
        "neither question nor undo": ({"answers": [{"preferred": first}]}, 422, "answers[0]", "either"),
        "both question and undo": ({"answers": [{"question": name, "undo": "a"}]}, 422, "answers[0]", "either"),
        "a question that was never asked": (
            {"answers": [{"question": "plq_AAAA", "preferred": "i0"}]}, 422, "answers[0].question", "GET",
        ),
        "a question of our making": (
            {"answers": [{"question": "mine", "preferred": "i0"}]}, 422, "answers[0].question", "GET",
        ),
        "another person's question": (
            {"answers": [{"question": theirs, "preferred": first}]}, 422, "answers[0].question", "'ann'",
        ),
        "a ranking for a question": (
            {"answers": [{"question": "plq_" + ranking[4:], "preferred": first}]}, 422, "answers[0].question", "GET",
        ),
        "a damaged question": (
            {"answers": [{"question": name[:-4] + "AAAA", "preferred": first}]}, 422, "answers[0].question", "GET",
        ),
        "an empty question": ({"answers": [{"question": "", "preferred": first}]}, 422, "answers[0].question", ""),
        "a question beyond all length": (
            {"answers": [{"question": "plq_" + "A" * 5000}]}, 422, "answers[0].question", "",
        ),
        "an item that was not compared": (
            {"answers": [{"question": name, "preferred": "i99"}]}, 422, "answers[0].preferred", repr(first),
        ),
        "no item": ({"answers": [{"question": name}]}, 422, "answers[0].preferred", repr(first)),
        "an item where none is preferred": (
            {"answers": [{"question": name, "outcome": "both", "preferred": first}]}, 422, "answers[0].preferred", "it",
        ),
        "an unknown outcome": (
            {"answers": [{"question": name, "outcome": "maybe"}]}, 422, "answers[0].outcome", "",
        ),
        "an undo of nothing": ({"answers": [{"undo": "ans-none"}]}, 404, "answers[0].undo", "evidence_token"),
        "an empty undo": ({"answers": [{"undo": ""}]}, 422, "answers[0].undo", ""),
        "a misspelt key": ({"answers": [{"questoin": name}]}, 422, "answers", "'question'"),
        "a foreign evidence token": (
            {"answers": [{"question": name, "preferred": first}], "evidence_token": "AAAA"}, 422, "evidence_token", "",
        ),
        "malformed JSON": (b"{", 400, "body", ""),
    }  # fmt: skip


def test_a_bad_answer_has_its_defined_reply_and_writes_nothing(service: Service) -> None:
    cases = bad_answers(service)
    for body, status, thing, remedy in cases.values():
        problem = assert_problem(service.call("POST", f"{ANN}/answers", body, scope="feedback"), status, thing)
        assert remedy in problem["remedy"], problem
    assert not [event for event in service.log.said if isinstance(event, Comparison)]


def test_one_bad_answer_among_good_ones_refuses_them_all(service: Service) -> None:
    good = ask(service)["question"]["choices"][0]["answer"]
    assert_problem(reply(service, good, {"undo": "ans-none"}), 404, "answers[1].undo")
    assert service.log.said == []


def test_an_answer_needs_the_log_but_a_question_does_not(service: Service) -> None:
    good = ask(service)["question"]["choices"][0]["answer"]
    service.log.away = True
    assert_problem(reply(service, good), 503, "log")
    assert ask(service)["question"]


def test_without_the_store_answers_are_taken_and_undone_later(service: Service) -> None:
    good = ask(service)["question"]["choices"][0]["answer"]
    service.store.away = True
    body = send(service, good)
    assert (body["degraded"], body["progress"]["answers"]) == (True, 1)
    assert "store" in body["reason"]
    assert_problem(reply(service, {"undo": body["results"][0]["id"]}), 503, "undo")


def test_before_the_first_version_there_is_nothing_to_ask(empty: Service) -> None:
    for path in ("question", "taste", "summary"):
        assert_problem(empty.call("GET", f"{ANN}/{path}"), 503, "version")
    assert_problem(empty.call("PUT", f"{ANN}/summary", {"likes": ["drama"]}), 503, "version")
    assert_problem(reply(empty, {"undo": "x"}), 503, "version")
    assert empty.call("DELETE", ANN).status_code == 200


def test_a_read_may_wait_for_a_write_and_knows_no_other_parameter(service: Service) -> None:
    token = send(service, ask(service)["question"]["choices"][0]["answer"])["evidence_token"]
    for path in ("question", "taste", "summary"):
        body = service.call("GET", f"{ANN}/{path}?evidence_token={token}").json()
        assert not body["degraded"]
    assert len(service.store.waited) == 3
    service.store.offsets.clear()
    assert service.call("GET", f"{ANN}/question?evidence_token={token}").json()["degraded"]
    assert_problem(service.call("GET", f"{ANN}/question?evidence_tokn=x"), 422, "query")
    assert_problem(service.call("GET", f"{ANN}/taste?evidence_token=x"), 422, "evidence_token")


# -- who is meant ----------------------------------------------------------------------------------------------


def test_any_id_can_be_a_person(service: Service) -> None:
    for user in ("a%2Fb", "caf%C3%A9 9", "x" * 512, "a%3Fb", "question"):
        body = ask(service, user)
        answer = body["question"]["choices"][0]["answer"]
        taken = service.call("POST", f"/v1/users/{user}/answers", {"answers": [answer]})
        assert taken.status_code == 200
        assert service.log.said[-1].user == body["user"]  # type: ignore[union-attr]
        assert service.call("DELETE", f"/v1/users/{user}").json()["removed"]["answers"] == 1


NOBODY = (
    ("GET", "/v1/users//question", 422),
    ("DELETE", "/v1/users/", 422),
    ("GET", f"/v1/users/{'x' * 513}/question", 422),
    ("GET", "/v1/users/%FF/question", 422),
    ("DELETE", "/v1/users/%C3%28", 422),
    ("DELETE", "/v1/users/ann/question", 404),
    ("GET", "/v1/users/ann/b/question", 404),
    ("GET", "/v1/users/ann", 405),
    ("POST", "/v1/users/ann/taste", 405),
)


def test_a_path_that_names_nobody_is_a_problem(service: Service) -> None:
    for method, path, status in NOBODY:
        assert_problem(service.call(method, path), status)
    assert service.log.said == []


# -- words -----------------------------------------------------------------------------------------------------


def likes(*items: str) -> list[dict[str, Any]]:
    return [click(n, item=item, type="like") for n, item in enumerate(items)]


def test_a_history_is_told_in_sentences_and_striking_takes_it_back(service: Service) -> None:
    service.call("POST", "/v1/feedback", likes("i0", "i3", "i6", "i9"))
    body = service.call("GET", f"{ANN}/summary", scope="rank").json()
    assert body["evidence"]["history"] == 4
    told = {one["key"]: one for one in body["phrases"]}
    if "genres=comedy" in told:  # random weights need not bear it out
        assert told["genres=comedy"]["source"] == "history"
        assert "comedy" in " ".join(body["sentences"])
    struck = service.call("PUT", f"{ANN}/summary", {"struck": ["comedy"]}, scope="feedback").json()
    assert struck["struck"] == ["genres=comedy"]
    assert struck["evidence"]["history"] == 0
    assert "genres=comedy" not in {one["key"] for one in struck["phrases"]}
    after = service.call("POST", "/v1/rank", {**RANK, "evidence_token": struck["evidence_token"]}).json()
    assert after["evidence"]["history"] == 0
    back = service.call("PUT", f"{ANN}/summary", {"struck": []}).json()
    assert (back["struck"], back["evidence"]["history"]) == ([], 4)


def test_what_a_person_writes_is_echoed_said_first_and_moves_the_ranking(service: Service) -> None:
    def mean_place(answer: dict[str, Any], genre: str) -> float:
        rows = {item.id for item in ITEMS if item.fields["genres"] == [genre]}
        return sum(item["position"] for item in answer["items"] if item["id"] in rows) / len(rows)

    sent = {**RANK, "weights": {"click": 0, "like": 0, "preference": 1}}
    before = service.call("POST", "/v1/rank", sent).json()
    last = max(("comedy", "drama", "horror"), key=lambda genre: mean_place(before, genre))
    first = min(("comedy", "drama", "horror"), key=lambda genre: mean_place(before, genre))
    body = service.call("PUT", f"{ANN}/summary", {"text": f"Much more {last}, no {first}, and xyzzy!"}).json()
    assert [(one["sign"], one["key"]) for one in body["understood"]] == [
        ("likes", f"genres={last}"),
        ("avoids", f"genres={first}"),
    ]
    assert body["not_understood"] == ["xyzzy"]
    assert body["sentences"] == [f"You like {last}.", f"You avoid {first}."]
    assert {one["source"] for one in body["phrases"][:2]} == {"words"}
    after = service.call("POST", "/v1/rank", {**sent, "evidence_token": body["evidence_token"]}).json()
    assert after["evidence"]["words"] == 2
    assert mean_place(after, last) < mean_place(before, last)
    assert mean_place(after, first) > mean_place(before, first)


def test_words_are_an_event_and_the_same_words_none(service: Service) -> None:
    body = service.call("PUT", f"{ANN}/summary", {"likes": ["drama"], "avoids": ["genres=horror"]}).json()
    (event,) = service.log.said
    assert isinstance(event, Summary)
    assert (event.likes, event.avoids, event.struck) == (["genres=drama"], ["genres=horror"], [])
    assert body["evidence_token"]
    again = service.call("PUT", f"{ANN}/summary", {"likes": ["drama"]}).json()
    assert "evidence_token" not in again
    assert len(service.log.said) == 1
    for likes in (["comedy"], ["drama"]):  # there and back again
        service.call("PUT", f"{ANN}/summary", {"likes": likes})
    assert service.store.users["ann"].words.likes == ("genres=drama",)
    service.call("PUT", f"{ANN}/summary", {"likes": [], "avoids": []})
    assert service.store.users["ann"].words == evidence.Words()


def test_with_a_sentence_encoder_words_are_understood_by_meaning(service: Service) -> None:
    def encode(texts: Sequence[str]) -> NDArray[np.floating]:
        return np.array([[1.0, 0.0] if text in ("jests", "comedy") else [0.0, 1.0] for text in texts])

    sent = {"text": "jests"}
    assert_problem(service.call("PUT", f"{ANN}/summary", sent), 422, "text")
    service.replica._sentences = lambda: encode
    service.replica._learn_to_read()
    body = service.call("PUT", f"{ANN}/summary", sent).json()
    assert [one["key"] for one in body["understood"]] == ["genres=comedy"]


BAD_WORDS = {
    "nothing": ({}, 422, "summary", "text"),
    "an empty text": ({"text": ""}, 422, "text", "leave it out"),
    "a text too long": ({"text": "comedy " * 400}, 422, "text", ""),
    "a text of which nothing is understood": ({"text": "xyzzy"}, 422, "text", "genres="),
    "an unknown phrase": ({"likes": ["genres=drma"]}, 422, "likes[0]", "did you mean 'genres=drama'?"),
    "an empty phrase": ({"likes": [""]}, 422, "likes[0]", ""),
    "a phrase too long": ({"likes": ["x" * 201]}, 422, "likes[0]", ""),
    "too many phrases": ({"likes": ["drama"] * 65}, 422, "likes", ""),
    "an unknown phrase struck": ({"struck": ["avoids xyzzy"]}, 422, "struck[0]", "genres="),
    "both liked and avoided": ({"likes": ["drama"], "avoids": ["drama"]}, 422, "avoids", "one of the two"),
    "a misspelt key": ({"strike": ["drama"]}, 422, "body", "'struck'"),
    "a wrong type": ({"likes": "drama"}, 422, "likes", ""),
    "a foreign evidence token": ({"likes": ["drama"], "evidence_token": "AAAA"}, 422, "evidence_token", ""),
    "malformed JSON": (b"{", 400, "body", ""),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_words_have_their_defined_reply_and_write_nothing(service: Service, name: str) -> None:
    body, status, thing, remedy = BAD_WORDS[name]
    problem = assert_problem(service.call("PUT", f"{ANN}/summary", body, scope="feedback"), status, thing)
    assert remedy in problem["remedy"], problem
    assert service.log.said == []


def test_words_that_would_lose_earlier_ones_wait_for_the_store(service: Service) -> None:
    service.store.away = True
    assert_problem(service.call("PUT", f"{ANN}/summary", {"likes": ["drama"]}), 503, "summary")
    whole: dict[str, list[str]] = {"likes": ["drama"], "avoids": [], "struck": []}
    assert service.call("PUT", f"{ANN}/summary", whole).json()["degraded"]
    service.log.away = True
    assert_problem(service.call("PUT", f"{ANN}/summary", {**whole, "likes": []}), 503, "log")


# -- the taste -------------------------------------------------------------------------------------------------


def test_a_taste_is_told_by_items_and_interests_against_the_population(service: Service) -> None:
    new = service.call("GET", f"{ANN}/taste", scope="rank").json()
    assert (new["overall"], new["uncertainty"], set(new["evidence"].values())) == (None, 1.0, {0})
    assert all(direction["certainty"] == 0.5 for direction in new["directions"])
    body = ask(service)
    for _ in range(6):
        body = send(service, body["question"]["choices"][0]["answer"])
    told = service.call("GET", f"{ANN}/taste", scope="rank").json()
    assert told["evidence"]["answers"] == 6
    assert told["uncertainty"] == pytest.approx(body["progress"]["uncertainty"])
    assert told["overall"]["certainty"] > 0.5
    assert told["overall"]["wanted"]["items"][0]["id"] in IDS
    assert set(told["directions"][0]["wanted"]["interests"]) <= {"comedy", "drama", "horror"}
    sure = told["overall"]["certainty"] >= 0.6
    assert told["overall"]["sentence"].endswith("than most people." if sure else "what most people want.")


def test_no_route_tells_a_persons_group(service: Service) -> None:
    event = {"event": "user", "id": "u1", "timestamp": NOW_MS, "user": "ann"}
    fields = [{"name": "gender", "value": "secret-group"}, {"name": "city", "value": "Oslo"}]
    assert service.call("POST", "/v1/feedback", {**event, "fields": fields}, scope="ingest").status_code == 200
    question = ask(service)["question"]
    answers = [
        service.call("GET", f"{ANN}/question"),
        service.call("POST", f"{ANN}/answers", {"answers": [question["choices"][0]["answer"]]}),
        service.call("GET", f"{ANN}/taste"),
        service.call("GET", f"{ANN}/summary"),
        service.call("PUT", f"{ANN}/summary", {"likes": ["drama"]}),
        service.call("POST", "/v1/rank", {**RANK, "explain": True}),
        service.call("POST", "/v1/recommend", {"user": "ann", "explain": True}),
        service.call("DELETE", ANN),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert "secret-group" not in answer.text
        assert "gender" not in answer.text


# -- being forgotten -------------------------------------------------------------------------------------------


def test_a_forgotten_person_is_a_newcomer(service: Service) -> None:
    newcomer = service.call("POST", "/v1/rank", {**RANK, "calibration": 0}).json()
    send(service, ask(service)["question"]["choices"][0]["answer"])
    service.call("POST", "/v1/feedback", click())
    body = service.call("DELETE", ANN).json()
    assert body["removed"] == {"history": 1, "answers": 1, "words": 0, "fields": 0}
    assert len(body["views"]) == 3
    event = service.log.said[-1]
    assert isinstance(event, Forget)
    sent = {**RANK, "calibration": 0, "evidence_token": body["evidence_token"]}
    after = service.call("POST", "/v1/rank", sent).json()
    assert set(after["evidence"].values()) == {0}
    scores = [{item["id"]: item["score"] for item in one["items"]} for one in (newcomer, after)]
    assert scores[0] == pytest.approx(scores[1])
    assert ask(service)["progress"]["answers"] == 0
    assert service.call("DELETE", ANN).json()["removed"] == {"history": 0, "answers": 0, "words": 0, "fields": 0}


def test_a_forget_lies_behind_everything_known_even_of_a_clock_that_is_ahead(service: Service) -> None:
    service.call("POST", "/v1/feedback", click(timestamp=NOW_MS + 30_000))
    service.call("DELETE", ANN)
    assert service.log.said[-1].time == NOW_MS + 30_000


def test_without_the_store_a_person_is_forgotten_all_the_same(service: Service) -> None:
    service.store.away = True
    assert service.call("DELETE", ANN).json()["removed"] is None
    assert isinstance(service.log.said[-1], Forget)
    service.log.away = True
    assert_problem(service.call("DELETE", ANN), 503, "log")
