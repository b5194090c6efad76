"""The HTTP interface: the only door to FastAPI.

Handlers take the raw request and answer with msgspec, because pydantic cost more than half of the model's own time on
the request path. FastAPI keeps the routes and the OpenAPI document, which is completed here with the same Structs that
read and write the bodies, so it cannot say anything else than what runs. /docs needs no content delivery network.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ranker import events
from ranker.errors import AuthError, NotFound, PlurankError, RequestError
from services import messages, openapi
from services.dialogue import (
    AnswersAnswer,
    AnswersRequest,
    ForgetAnswer,
    QuestionAnswer,
    SummaryAnswer,
    SummaryRequest,
    TasteAnswer,
)
from services.messages import (
    CanaryRequest,
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
from services.openapi import JSON, PROBLEM, Handler, Route
from services.people import People
from services.replica import Replica
from services.telemetry import CONTENT_TYPE

log = logging.getLogger("plurank.api")

#: a body over the limit is read and thrown away up to this many times the limit, so that its sender hears the answer
DRAIN = 16

Asked = TypeVar("Asked", RankRequest, RecommendRequest)

#: characters of a user's id (ranker/events.py)
MAX_ID = 512
#: the query parameters of reads
HOURS = ("hours", "How far to go back, 1 unless given, up to 24.")
EVIDENCE = ("evidence_token", "From the answer to a write: wait (at most 500 ms) until that write counts.")

#: every route template, the closed set of metrics labels
PATHS = (
    "/v1/rank",
    "/v1/recommend",
    "/v1/feedback",
    "/v1/users/{id}/question",
    "/v1/users/{id}/answers",
    "/v1/users/{id}/summary",
    "/v1/users/{id}/taste",
    "/v1/users/{id}",
    "/v1/models",
    "/v1/models/{version}/promote",
    "/v1/models/{version}/rollback",
    "/v1/models/{version}/canary",
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
_canary = msgspec.json.Decoder(CanaryRequest)
_answers = msgspec.json.Decoder(AnswersRequest)
_summary = msgspec.json.Decoder(SummaryRequest)


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
    routes = [*_routes(replica), *_person_routes(People(replica), replica.settings.body_limit)]
    busy: dict[tuple[str, str], Handler] = {}
    others = app.router.routes.copy()
    for route in routes:
        endpoint = _endpoint(route, replica)
        if "{" not in route.path:
            busy[route.method, route.path] = endpoint
        # Starlette's own route: FastAPI's would look for dependencies and a response model on every request
        app.router.add_route(
            route.path.replace("{id}", "{id:path}"),
            endpoint,
            methods=[route.method],
            name=route.handler.__name__,
            include_in_schema=False,
        )
    # Serve looks up each request's route in this order, for its metrics
    app.router.routes[:] = [*app.router.routes[len(others) :], *others]
    document = openapi.document(routes, title=app.title, description=app.description, version=app.version)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.middleware_stack = _Shortcut(app.build_middleware_stack(), busy)
    return app


class _Shortcut:
    """Answers routes without parameters at once: the framework's layers and its search are not free."""

    def __init__(self, app: ASGIApp, endpoints: dict[tuple[str, str], Handler]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        answer = await endpoint(Request(scope, receive, send))
        await answer(scope, receive, send)


def _routes(replica: Replica) -> list[Route]:
    limit = replica.settings.body_limit

    async def rank(request: Request) -> Response:
        """Put the given items in order for a user."""
        return _json(await replica.rank(_permitted(messages.read(await _body(request, limit), _rank), request)))

    async def recommend(request: Request) -> Response:
        """Recommend items of the catalogue to a user."""
        return _json(await replica.rank(_permitted(messages.read(await _body(request, limit), _recommend), request)))

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
        return _json(await replica.versions.models())

    async def promote(request: Request) -> Response:
        """Serve this version from now on, if its verdict allows it or a person forces it."""
        body = await _body(request, limit)
        order = messages.read(body, _promote) if body.strip() else PromoteRequest()
        return _json(await replica.versions.promote(request.path_params["version"], order))

    async def rollback(request: Request) -> Response:
        """Serve this earlier version and hold it until a person promotes again."""
        return _json(await replica.versions.rollback(request.path_params["version"]))

    async def canary(request: Request) -> Response:
        """Try this version on a share of the users; the monitor grows the share, promotes or withdraws it."""
        body = await _body(request, limit)
        order = messages.read(body, _canary) if body.strip() else CanaryRequest()
        return _json(await replica.versions.canary(request.path_params["version"], order))

    async def withdraw(request: Request) -> Response:
        """End the trial of this version: everybody is served the current one again."""
        return _json(await replica.versions.withdraw(request.path_params["version"]))

    async def fairness(request: Request) -> Response:
        """Show how groups and people are served, with intervals, and what was decided on versions.

        `latest` is the place to begin; `measures` says what its words mean. Groups of fewer people than the configured
        minimum are withheld, and nothing here is about one person.
        """
        return _json(await replica.figures.fairness(_asked(request, HOURS)))

    async def schema(request: Request) -> Response:
        """Show the contract of events as JSON Schema."""
        return _json(events.schema())

    async def metrics(request: Request) -> Response:
        """Show the metrics of every process of this deployment, for people."""
        return Response(await replica.figures.exposition(), media_type=CONTENT_TYPE)

    async def targets(request: Request) -> Response:
        """Tell Prometheus what to scrape (http_sd)."""
        return _json(await replica.figures.targets())

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
            method="POST",
            path="/v1/models/{version}/canary",
            handler=canary,
            tag="models",
            scopes=("admin",),
            takes=CanaryRequest,
            gives=PointerAnswer,
            errors=(400, 404, 409, 413, 422),
        ),
        Route(
            method="DELETE",
            path="/v1/models/{version}/canary",
            handler=withdraw,
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
            asks=HOURS,
            errors=(422, 503),
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


def _person_routes(people: People, limit: int) -> list[Route]:
    async def question(request: Request) -> Response:
        """Ask a person to compare two items: those whose comparison tells most about her taste.

        The same question comes until it is answered. A few answers later an earlier pair comes again in other words
        and the other way round. `progress.enough` says when to stop.
        """
        return _json(await people.question(_user(request), _evidence_token(request)))

    async def answers(request: Request) -> Response:
        """Take a person's answers, and ask the next question with them already counted.

        They are comparison events in the log. An answer that cannot be taken refuses all of the body. Repeats are
        harmless: after a 503, send the same body again.
        """
        sent = messages.read(await _body(request, limit), _answers)
        return _json(await people.answer(_user(request), sent))

    async def summary(request: Request) -> Response:
        """Tell a person in plain sentences what is believed of her taste."""
        return _json(await people.summary(_user(request), _evidence_token(request)))

    async def rewrite(request: Request) -> Response:
        """Take what a person says of her taste: phrases to add, to avoid or to strike, or free text.

        What was understood is echoed back with what was not. It is a summary event in the log.
        """
        sent = messages.read(await _body(request, limit), _summary)
        return _json(await people.rewrite(_user(request), sent))

    async def taste(request: Request) -> Response:
        """Explain a person's taste against the population's: items and interests at its ends, and how sure it is."""
        return _json(await people.taste(_user(request), _evidence_token(request)))

    async def forget(request: Request) -> Response:
        """Forget a person: her evidence, and what the learner and the monitor hold of her."""
        return _json(await people.forget(_user(request)))

    one = "/v1/users/{id}"
    return [
        Route(
            method="GET",
            path=f"{one}/question",
            handler=question,
            tag="people",
            scopes=("rank",),
            gives=QuestionAnswer,
            asks=EVIDENCE,
            errors=(404, 422, 503),
        ),
        Route(
            method="POST",
            path=f"{one}/answers",
            handler=answers,
            tag="people",
            scopes=("feedback",),
            takes=AnswersRequest,
            gives=AnswersAnswer,
            errors=(400, 404, 413, 422, 503),
        ),
        Route(
            method="GET",
            path=f"{one}/summary",
            handler=summary,
            tag="people",
            scopes=("rank",),
            gives=SummaryAnswer,
            asks=EVIDENCE,
            errors=(404, 422, 503),
        ),
        Route(
            method="PUT",
            path=f"{one}/summary",
            handler=rewrite,
            tag="people",
            scopes=("feedback",),
            takes=SummaryRequest,
            gives=SummaryAnswer,
            errors=(400, 404, 413, 422, 503),
        ),
        Route(
            method="GET",
            path=f"{one}/taste",
            handler=taste,
            tag="people",
            scopes=("rank",),
            gives=TasteAnswer,
            asks=EVIDENCE,
            errors=(404, 422, 503),
        ),
        Route(
            method="DELETE",
            path=one,
            handler=forget,
            tag="people",
            scopes=("admin",),
            gives=ForgetAnswer,
            errors=(404, 422, 503),
        ),
    ]


def _user(request: Request) -> str:
    """The person that the path names. Her id is one part of the path as it was sent, so that `DELETE
    /v1/users/ann/question` cannot mean a person of the name "ann/question"; a slash in an id comes as %2F.

    Raises:
        NotFound: there is a slash in it, so this is another route, and there is none.
        RequestError: it is empty, too long or not UTF-8.
    """
    sent: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    slashes = request.scope["path"].count("/") - request.path_params["id"].count("/")
    parts = sent.partition(b"?")[0].split(b"/")
    if len(parts) - 1 != slashes:
        raise NotFound("route", request.url.path, "see /docs for the routes there are; write a slash in an id as %2F")
    try:
        user = unquote_to_bytes(parts[3]).decode()
    except UnicodeDecodeError:
        raise RequestError("user", parts[3].decode("ascii", "replace"), "write the id in UTF-8") from None
    if not 1 <= len(user) <= MAX_ID:
        raise RequestError("user", user, f"name a person by an id of 1 to {MAX_ID} characters")
    return user


def _evidence_token(request: Request) -> str | None:
    return _asked(request, EVIDENCE)


def _asked(request: Request, parameter: tuple[str, str]) -> str | None:
    """The one query parameter that this route knows."""
    for name in request.query_params:
        if name != parameter[0]:
            raise RequestError("query", name, f"the only parameter is {parameter[0]}")
    return request.query_params.get(parameter[0])


def _endpoint(route: Route, replica: Replica) -> Handler:
    tokens, count = replica.tokens, replica.telemetry.request_served

    async def endpoint(request: Request) -> Response:
        begun, status = time.perf_counter(), 500
        try:
            if route.scopes:
                request.state.scopes = tokens.check(request.headers.get("authorization"), *route.scopes)
            answer: Response = await route.handler(request)
            status = answer.status_code
            return answer
        except PlurankError as error:
            answer = _answer(messages.problem_of(error))
            status = answer.status_code
            return answer
        except Exception as error:
            log.exception("%s %s", request.method, request.url.path)
            return await _failed(request, error)
        finally:
            count(route.path, status, time.perf_counter() - begun)

    return endpoint


def _permitted(message: Asked, request: Request) -> Asked:
    """The message, unless it asks for what its sender may not.

    Raises:
        AuthError: 403, the guard is lifted without the admin scope.
    """
    if not message.guard and "admin" not in request.state.scopes:
        error = AuthError("guard", message.guard, "leave it out, or send the token of the scope admin")
        error.status = 403
        raise error
    return message


async def _body(request: Request, limit: int) -> bytes:
    """The body, unless it is too large.

    Raises:
        RequestError: 413.
    """
    size, parts = 0, []
    more = True
    while more and size <= limit * DRAIN:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestError("body", size, "the connection closed before the body was complete")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit:
            parts.append(part)
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
