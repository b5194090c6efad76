"""The OpenAPI document, made of the routes and Structs that answer, so it cannot say anything else than what runs."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ranker import events
from services.messages import Problem, PromoteRequest
from services.tokens import Scope

JSON = "application/json"
PROBLEM = "application/problem+json"

#: takes a request, gives a response
Handler = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation: what runs, who may call it, and what OpenAPI says about its bodies.

    `asks` is the name and meaning of the query parameter, where there is one.
    """

    method: str
    path: str
    handler: Handler
    tag: str
    scopes: tuple[Scope, ...] = ()
    takes: Any = None
    gives: Any = None
    media: str = JSON
    asks: tuple[str, str] | None = None
    errors: tuple[int, ...] = ()


def document(routes: Sequence[Route], *, title: str, description: str, version: str) -> dict[str, Any]:
    """The whole document."""
    kinds = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    _, components = msgspec.json.schema_components([*kinds, Problem], ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
    }


def _operation(route: Route) -> dict[str, Any]:
    summary, _, rest = (route.handler.__doc__ or "").partition("\n")
    errors = {*route.errors, *((401, 403) if route.scopes else ())}
    problem = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": summary,
        "description": " ".join(rest.split()) + (f" Scope: {' or '.join(route.scopes)}." if route.scopes else ""),
        "tags": [route.tag],
        "responses": {
            "200": {"description": "It is done.", "content": {route.media: {"schema": _schema(route.gives)}}},
            **{str(code): {"description": _MEANING[code], "content": problem} for code in sorted(errors)},
        },
    }
    if route.scopes:
        operation["security"] = [{"token": []}]
    text = {"type": "string"}
    named = re.findall(r"{(\w+)}", route.path)
    parameters: list[dict[str, Any]] = [{"name": n, "in": "path", "required": True, "schema": text} for n in named]
    if route.asks is not None:
        name, meaning = route.asks
        parameters.append({"name": name, "in": "query", "description": meaning, "schema": text})
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        one = _schema(route.takes)
        content = {JSON: {"schema": one}}
        if route.takes is events.Event:
            content[JSON] = {"schema": {"anyOf": [one, {"type": "array", "items": one}]}}
            content["application/x-ndjson"] = {"schema": one}
        operation["requestBody"] = {"required": route.takes is not PromoteRequest, "content": content}
    return operation


def _schema(kind: Any) -> Any:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


_MEANING = {
    400: "The body is not JSON.",
    401: "No token, or an unknown one.",
    403: "The token is for another scope.",
    404: "There is no such version, route or answer.",
    409: "The registry moved meanwhile, or the version may not be served.",
    413: "The body is too large.",
    422: "Well formed, but it cannot mean what it says; `thing`, `value` and `remedy` tell more.",
    503: "A part is missing just now: no version yet, or the log or the store is out of reach. Try again.",
}
