"""The HTTP interface: the only door to FastAPI.

Handlers take the raw request and answer with msgspec, because pydantic cost more than half of the model's own time on
the request path. FastAPI keeps the routes and the OpenAPI document, which is completed here with the same Structs that
read and write the bodies, so it cannot say anything else than what runs. /docs needs no content delivery network.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ranker import events
from ranker.errors import NotFound, PlurankError, RequestError
from services import messages
from services.messages import (
    FairnessAnswer,
    FeedbackAnswer,
    Health,
    ModelsAnswer,
    PointerAnswer,
    Problem,
    PromoteRequest,
    RankAnswer,
    RankRequest,
    RecommendRequest,
    Target,
)
from services.replica import Replica
from services.telemetry import CONTENT_TYPE
from services.tokens import Scope

JSON = "application/json"
PROBLEM = "application/problem+json"
#: a body over the limit is read and thrown away up to this many times the limit, so that its sender hears the answer
DRAIN = 16

#: every route template, the closed set of metrics labels
PATHS = (
    "/v1/rank",
    "/v1/recommend",
    "/v1/feedback",
    "/v1/models",
    "/v1/models/{version}/promote",
    "/v1/models/{version}/rollback",
    "/v1/fairness",
    "/v1/schema",
    "/metrics",
    "/v1/metrics/targets",
    "/healthz",
    "/readyz",
)

_encode = msgspec.json.Encoder().encode
_rank = msgspec.json.Decoder(RankRequest)
_recommend = msgspec.json.Decoder(RecommendRequest)
_promote = msgspec.json.Decoder(PromoteRequest)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation: what runs, who may call it, and what OpenAPI says about its bodies."""

    method: str
    path: str
    handler: Handler
    tag: str
    scopes: tuple[Scope, ...] = ()
    takes: Any = None
    gives: Any = None
    media: str = JSON
    errors: tuple[int, ...] = ()


def build(replica: Replica, *, started: bool = False) -> FastAPI:
    """The application around one replica, which it starts and closes unless it is `started` already."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not started:
            await asyncio.to_thread(replica.start)
        yield
        if not started:
            await asyncio.to_thread(replica.close)
            await replica.reads.close()

    app: FastAPI = FastAPIOffline(
        title="plurank",
        description="A ranking service that learns online and serves people who disagree.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Exception, _failed)
    routes = _routes(replica)
    for route in routes:
        app.add_api_route(
            route.path,
            _endpoint(route, replica),
            methods=[route.method],
            response_class=Response,
            response_model=None,
            include_in_schema=False,
            name=route.handler.__name__,
        )
    document = _openapi(app, routes)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _routes(replica: Replica) -> list[Route]:
    limit = replica.settings.body_limit

    async def rank(request: Request) -> Response:
        """Put the given items in order for a user."""
        return _json(await replica.rank(messages.read(await _body(request, limit), _rank)))

    async def recommend(request: Request) -> Response:
        """Recommend items of the catalogue to a user."""
        return _json(await replica.rank(messages.read(await _body(request, limit), _recommend)))

    async def feedback(request: Request) -> Response:
        """Write events to the log: one event, a JSON array of events, or JSON lines.

        Each event stands for itself: valid ones are written, and `results` says which were refused and why. 200 if at
        least one was accepted, 422 if none was. Interactions, comparisons and summaries need the `feedback` scope, all
        other events `ingest`. Ids make repeats harmless: after a 503, send the same body again.
        """
        answer = await replica.feedback(await _body(request, limit), request.state.scopes)
        return _json(answer) if answer.accepted else _answer(messages.nothing_taken(answer))

    async def models(request: Request) -> Response:
        """List the versions, the pointer and the latest decisions."""
        return _json(await replica.models())

    async def promote(request: Request) -> Response:
        """Serve this version from now on, if its verdict allows it or a person forces it."""
        body = await _body(request, limit)
        order = messages.read(body, _promote) if body.strip() else PromoteRequest()
        return _json(await replica.promote(request.path_params["version"], order))

    async def rollback(request: Request) -> Response:
        """Serve this earlier version and hold it until a person promotes again."""
        return _json(await replica.rollback(request.path_params["version"]))

    async def fairness(request: Request) -> Response:
        """Show what the monitor measured by group."""
        return _json(await replica.fairness())

    async def schema(request: Request) -> Response:
        """Show the contract of events as JSON Schema."""
        return _json(events.schema())

    async def metrics(request: Request) -> Response:
        """Show the metrics of every process of this deployment, for people."""
        return Response(await replica.exposition(), media_type=CONTENT_TYPE)

    async def targets(request: Request) -> Response:
        """Tell Prometheus what to scrape (http_sd)."""
        return _json(await replica.targets())

    async def healthz(request: Request) -> Response:
        """Say whether this process lives."""
        return _json(Health(status="alive"))

    async def readyz(request: Request) -> Response:
        """Say whether a version is served."""
        return _json(Health(status="ready", version=replica.serving.version))

    return [
        Route(
            method="POST",
            path="/v1/rank",
            handler=rank,
            tag="ranking",
            scopes=("rank",),
            takes=RankRequest,
            gives=RankAnswer,
            errors=(400, 413, 422, 503),
        ),
        Route(
            method="POST",
            path="/v1/recommend",
            handler=recommend,
            tag="ranking",
            scopes=("rank",),
            takes=RecommendRequest,
            gives=RankAnswer,
            errors=(400, 413, 422, 503),
        ),
        Route(
            method="POST",
            path="/v1/feedback",
            handler=feedback,
            tag="feedback",
            scopes=("feedback", "ingest"),
            takes=events.Event,
            gives=FeedbackAnswer,
            errors=(400, 413, 422, 503),
        ),
        Route(
            method="GET",
            path="/v1/models",
            handler=models,
            tag="models",
            scopes=("admin", "metrics"),
            gives=ModelsAnswer,
        ),
        Route(
            method="POST",
            path="/v1/models/{version}/promote",
            handler=promote,
            tag="models",
            scopes=("admin",),
            takes=PromoteRequest,
            gives=PointerAnswer,
            errors=(400, 404, 409, 413, 422),
        ),
        Route(
            method="POST",
            path="/v1/models/{version}/rollback",
            handler=rollback,
            tag="models",
            scopes=("admin",),
            gives=PointerAnswer,
            errors=(404, 409),
        ),
        Route(
            method="GET",
            path="/v1/fairness",
            handler=fairness,
            tag="fairness",
            scopes=("metrics",),
            gives=FairnessAnswer,
            errors=(503,),
        ),
        Route(method="GET", path="/v1/schema", handler=schema, tag="feedback", gives=dict[str, Any]),
        Route(
            method="GET",
            path="/metrics",
            handler=metrics,
            tag="operations",
            scopes=("metrics",),
            gives=str,
            media="text/plain",
        ),
        Route(
            method="GET",
            path="/v1/metrics/targets",
            handler=targets,
            tag="operations",
            scopes=("metrics",),
            gives=list[Target],
            errors=(503,),
        ),
        Route(method="GET", path="/healthz", handler=healthz, tag="operations", gives=Health),
        Route(method="GET", path="/readyz", handler=readyz, tag="operations", gives=Health, errors=(503,)),
    ]


def _endpoint(route: Route, replica: Replica) -> Handler:
    tokens, count = replica.tokens, replica.telemetry.request_served

    async def endpoint(request: Request) -> Response:
        begun, status = time.perf_counter(), 500
        try:
            if route.scopes:
                request.state.scopes = tokens.check(request.headers.get("authorization"), *route.scopes)
            answer = await route.handler(request)
            status = answer.status_code
            return answer
        except PlurankError as error:
            answer = _answer(messages.problem_of(error))
            status = answer.status_code
            return answer
        finally:
            count(route.path, status, time.perf_counter() - begun)

    return endpoint


async def _body(request: Request, limit: int) -> bytes:
    """The body, unless it is too large.

    Raises:
        RequestError: 413.
    """
    size, parts = 0, []
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit * DRAIN:
                break
            if size <= limit:
                parts.append(part)
    except ClientDisconnect:
        raise RequestError("body", size, "the connection closed before the body was complete") from None
    if size > limit:
        error = RequestError("body", f"{size} bytes or more", f"send at most {limit} bytes, in several requests")
        error.status = 413
        raise error
    return b"".join(parts)


def _json(value: Any) -> Response:
    return Response(_encode(value), media_type=JSON)


def _answer(problem: Problem) -> Response:
    headers = {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="plurank"'
    if problem.status == 503:
        headers["Retry-After"] = "1"
    return Response(_encode(problem), problem.status, headers, PROBLEM)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wrong = RequestError("method", request.method, "see /docs for the methods of this route")
    else:
        wrong = NotFound("route", request.url.path, "see /docs for the routes there are")
    wrong.status = error.status_code
    answer = _answer(messages.problem_of(wrong))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    wrong = PlurankError("server", type(error).__name__, "this is a fault of plurank; its log has the trace")
    return _answer(messages.problem_of(wrong))


def _openapi(app: FastAPI, routes: list[Route]) -> dict[str, Any]:
    kinds = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    _, components = msgspec.json.schema_components([*kinds, Problem], ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "description": app.description, "version": app.version},
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
    if "{version}" in route.path:
        operation["parameters"] = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
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
    404: "There is no such version.",
    409: "The registry moved meanwhile, or the version may not be served.",
    413: "The body is too large.",
    422: "Well formed, but it cannot mean what it says; `thing`, `value` and `remedy` tell more.",
    503: "A part is missing just now: no version yet, or the log or the store is out of reach. Try again.",
}
