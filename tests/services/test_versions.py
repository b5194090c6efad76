"""services/versions.py through HTTP: the versions there are, promotion and rollback by a person."""

import pytest

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
