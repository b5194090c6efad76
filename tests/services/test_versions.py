"""services/versions.py through HTTP: the versions there are, promotion and rollback by a person."""

import pytest

from ranker import events
from ranker.canary import drawn
from ranker.gate import Verdict
from tests.services.conftest import Service
from tests.services.test_api import assert_problem


def test_a_promotion_is_served_soon_and_a_rollback_too(service: Service) -> None:
    first = service.replica.serving.version
    second = service.version(seed=1)
    service.settle(lambda: service.replica.serving.version == second)
    body = service.call("POST", f"/v1/models/{first}/rollback").json()
    assert (body["version"], body["held"]) == (first, True)
    service.settle(lambda: service.replica.serving.version == first)
    models = service.call("GET", "/v1/models").json()
    assert (models["current"], models["serving"], models["held"]) == (first, first, True)
    assert [version["version"] for version in models["versions"]] == [second, first]
    assert_problem(service.call("POST", f"/v1/models/{second}/promote"), 409, second)
    body = service.call("POST", f"/v1/models/{second}/promote", {"force": True}).json()
    assert body["version"] == second
    assert_problem(service.call("POST", f"/v1/models/{first}/promote", {"generation": 1, "force": True}), 409)


def test_a_version_that_nobody_judged_needs_force(service: Service) -> None:
    version = service.registry.save(
        service.registry.load(service.replica.serving.version).weights,
        service.settings.config,
        metrics={},
        golden=service.registry.load(service.replica.serving.version).golden,
        parent=None,
    )
    problem = assert_problem(service.call("POST", f"/v1/models/{version}/promote"), 409, version)
    assert "force" in problem["remedy"]
    assert service.call("POST", f"/v1/models/{version}/promote", {"force": True}).status_code == 200


@pytest.mark.parametrize("version", ["v9", "..", "%2e%2e%2fetc"])
def test_an_unknown_version_is_404(service: Service, version: str) -> None:
    assert_problem(service.call("POST", f"/v1/models/{version}/promote"), 404)
    assert_problem(service.call("POST", f"/v1/models/{version}/rollback"), 404)


def drawn_user(version: str, share: float, *, canary: bool) -> str:
    """Somebody who is, or is not, among those the canary serves."""
    return next(user for user in (f"u{n}" for n in range(1000)) if drawn(user, version, share) == canary)


def test_a_canary_serves_its_share_and_answers_and_log_say_so(service: Service) -> None:
    first, second = service.replica.serving.version, saved(service, seed=1)
    body = service.call("POST", f"/v1/models/{second}/canary", {"share": 0.3}).json()
    assert (body["version"], body["canary"], body["share"]) == (first, second, 0.3)
    few, most = (drawn_user(second, 0.3, canary=canary) for canary in (True, False))
    asked = {"items": ["i0", "i1"]}
    service.settle(lambda: service.call("POST", "/v1/rank", {"user": few, **asked}).json()["version"] == second)
    answers = [service.call("POST", "/v1/rank", {"user": user, **asked}).json() for user in (few, most)]
    assert [(answer["version"], answer["arm"]) for answer in answers] == [(second, "canary"), (first, "current")]
    for page in ("question", "summary", "taste"):  # a person meets one version, wherever she looks
        told = [service.call("GET", f"/v1/users/{user}/{page}").json()["version"] for user in (few, most)]
        assert told == [second, first], page
    service.settle(lambda: all(answer["ranking"] in {event.id for event in service.log.events} for answer in answers))
    served = {event.id: event for event in service.log.events if isinstance(event, events.Ranking)}
    logged = [served[answer["ranking"]] for answer in answers]
    assert [(event.version, event.arm) for event in logged] == [(second, "canary"), (first, "current")]
    text = service.replica.telemetry.text()
    assert "plurank_canary_share_ratio 0.3" in text
    assert 'plurank_arm_slates_total{arm="canary"}' in text
    models = service.call("GET", "/v1/models").json()
    assert (models["canary"], models["share"]) == (second, 0.3)
    assert [version["canary"] for version in models["versions"]] == [True, False]
    assert models["decisions"][-1]["action"] == "canary"


def test_a_canary_that_is_withdrawn_serves_nobody_and_one_that_is_promoted_everybody(service: Service) -> None:
    first, second = service.replica.serving.version, saved(service, seed=1)
    few, most = (drawn_user(second, 0.3, canary=canary) for canary in (True, False))

    def version(user: str) -> str:
        return service.call("POST", "/v1/rank", {"user": user, "items": ["i0", "i1"]}).json()["version"]

    service.registry.canary(second, 0.3, who="test")
    service.settle(lambda: version(few) == second)
    assert_problem(service.call("DELETE", f"/v1/models/{first}/canary"), 404)
    assert service.call("DELETE", f"/v1/models/{second}/canary").json()["canary"] is None
    service.settle(lambda: version(few) == first)
    service.registry.canary(second, 0.3, who="test")
    service.settle(lambda: version(few) == second)
    loaded = service.replica.serving_of(few)[0]
    service.registry.promote(second, Verdict("pass"), who="monitor")
    service.settle(lambda: version(most) == second)
    assert service.replica.serving is loaded  # it was in memory
    assert service.replica.serving_of(few) == (loaded, "current")


def test_a_damaged_canary_is_withdrawn_with_the_reason_and_nobody_notices(service: Service) -> None:
    first, second = service.replica.serving.version, saved(service, seed=1)
    weights = service.registry.load(second).weights
    wrong = service.registry.load(first).golden  # scores that its weights do not give
    third = service.registry.save(weights, service.settings.config, metrics={}, golden=wrong, parent=None)
    service.registry.canary(third, 0.99, who="test")
    service.settle(lambda: service.registry.decisions()[-1].action == "withdraw")
    decision = service.registry.decisions()[-1]
    assert (decision.version, decision.who) == (third, "api-test")
    assert "golden" in decision.reasons[0]
    answer = service.call("POST", "/v1/rank", {"user": "ann", "items": ["i0", "i1"]}).json()
    assert (answer["version"], answer["arm"]) == (first, "current")


def test_a_canary_needs_a_version_a_share_and_a_free_pointer(service: Service) -> None:
    first, second = service.replica.serving.version, saved(service, seed=1)
    assert_problem(service.call("POST", f"/v1/models/{first}/canary"), 409)
    assert_problem(service.call("POST", f"/v1/models/{second}/canary", {"share": 1.5}), 422)
    assert_problem(service.call("POST", "/v1/models/v9/canary"), 404)
    assert_problem(service.call("POST", f"/v1/models/{second}/canary", scope="rank"), 403)
    assert service.call("POST", f"/v1/models/{second}/canary").json()["share"] == 0.05
    assert_problem(service.call("POST", f"/v1/models/{second}/canary", {"generation": 1}), 409)


def test_a_promotion_by_force_stays_marked(service: Service) -> None:
    served = service.registry.load(service.replica.serving.version)
    config = service.settings.config
    second = service.registry.save(served.weights, config, metrics={}, golden=served.golden, parent=None)
    assert service.call("POST", f"/v1/models/{second}/promote", {"force": True}).status_code == 200
    marks = {one["version"]: one["forced"] for one in service.call("GET", "/v1/models").json()["versions"]}
    assert [forced for version, forced in marks.items() if version == second] == [True]
    assert sum(marks.values()) == 1


def saved(service: Service, *, seed: int) -> str:
    """A sound version that nobody promoted."""
    before = service.replica.serving.version
    version = service.version(seed)
    service.registry.promote(before, Verdict("pass"), who="test")
    service.settle(lambda: service.replica.serving.version == before)
    return version
