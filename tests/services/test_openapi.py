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


def test_no_answer_about_a_person_has_room_for_a_group(service: Service) -> None:
    document = service.call("GET", "/openapi.json", scope=None).json()
    schemas = document["components"]["schemas"]

    def names(schema: object) -> set[str]:
        """Every property that this schema can hold, through its references."""
        found: set[str] = set()
        todo, done = [schema], set[str]()
        while todo:
            one = todo.pop()
            if isinstance(one, list):
                todo += one
            elif isinstance(one, dict):
                found |= set(one.get("properties", {}))
                todo += one.values()
                name = str(one.get("$ref", "")).rpartition("/")[2]
                if name and name not in done:
                    done.add(name)
                    todo.append(schemas[name])
        return found

    personal = [path for path in document["paths"] if path.startswith(("/v1/users/", "/v1/rank", "/v1/recommend"))]
    assert len(personal) >= 7
    for path in personal:
        for method, operation in document["paths"][path].items():
            held = names([answer["content"] for answer in operation["responses"].values() if "content" in answer])
            assert held, (method, path)
            assert not held & {"group", "groups", "support", "majority", "minority", "gender"}, (method, path)
