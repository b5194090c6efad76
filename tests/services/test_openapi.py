"""services/openapi.py: the document is complete and says what runs."""

import json

import msgspec

from services.api import PATHS
from tests.services.conftest import Service
from tests.services.test_api import OPEN


def test_openapi_is_complete(service: Service) -> None:
    document = service.call("GET", "/openapi.json", scope=None).json()
    assert set(document["paths"]) == set(PATHS)
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["responses"]["200"]["content"]
            assert ("security" in operation) == (path not in OPEN)
            assert ("401" in operation["responses"]) == (path not in OPEN)
    assert "RankRequest" in schemas
    assert "Interaction" in schemas


def test_the_page_of_docs_needs_no_other_host(service: Service) -> None:
    page = service.call("GET", "/docs", scope=None).text
    assert "http://" not in page
    assert "https://" not in page
    script = page.split('<script src="')[1].split('"')[0]
    assert service.call("GET", script, scope=None).status_code == 200


def test_openapi_names_the_parameters_of_every_person_route(service: Service) -> None:
    document = service.call("GET", "/openapi.json", scope=None).json()
    routes = {path: found for path, found in document["paths"].items() if path.startswith("/v1/users/")}
    assert len(routes) == 5
    for found in routes.values():
        for method, operation in found.items():
            names = [(one["name"], one["in"]) for one in operation["parameters"]]
            assert names == [("id", "path"), *([("evidence_token", "query")] if method == "get" else [])]
            assert "404" in operation["responses"]
    assert "Choice" in document["components"]["schemas"]
    assert json.loads(msgspec.json.encode(document)) == document
