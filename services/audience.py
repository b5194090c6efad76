"""The audience of `plurank up`: simulated people who ask the running service for slates and react to them.

They are real HTTP clients. MovieLens's people ask /v1/rank for the hidden half of their own ratings, which is their
truth; their eyes and clicks are simulated. The synthetic population asks /v1/recommend for whatever the catalogue
holds (`ranker/simulation.py`). Satisfaction is read from the truth, never from clicks.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import Any

from ranker.datasets import movielens
from ranker.errors import NotFound, RequestError
from ranker.events import Event
from ranker.simulation import Audience, Crowd, Population, Satisfaction, visit
from services.client import Client

#: the live figures speak of this many last visits
RECENT = 400
#: data set -> what is simulated about its audience
ABOUT = {"ml-100k": "simulated clicks on real ratings", "synthetic": "people, items and clicks are all synthetic"}


@dataclass
class Diary:
    """What the audience lived through so far.

    Attributes:
        about: what of the audience is simulated, in words.
        satisfaction: by version, in the order the versions were first met.
        answers: HTTP status -> count; 0 where nothing answered.
    """

    about: str = ""
    satisfaction: dict[str, Satisfaction] = field(default_factory=dict)
    recent: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    answers: Counter[int] = field(default_factory=Counter)
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    events: int = 0

    def facts(self) -> dict[str, Any]:
        """The figures as plain data, for the status file."""
        versions = list(self.satisfaction)
        shown, oracle, chance = (
            (statistics.fmean(column) for column in zip(*self.recent, strict=True))
            if (self.recent)
            else (None, None, None)
        )
        return {
            "audience": self.about,
            "visits": sum(s.visits for s in self.satisfaction.values()),
            "events": self.events,
            "satisfaction": shown,
            "oracle": oracle,
            "chance": chance,
            "versions": {v: {"visits": s.visits, "satisfaction": s.mean} for v, s in self.satisfaction.items()},
            "first": self.satisfaction[versions[0]].mean if versions else None,
            "version": versions[-1] if versions else None,
            "answers": {str(status): count for status, count in self.answers.items()},
            "p50_ms": statistics.median(self.latency_ms) if self.latency_ms else None,
            "p99_ms": statistics.quantiles(self.latency_ms, n=100)[98] if len(self.latency_ms) > 1 else None,
        }


def crowd(data: str) -> tuple[Crowd, str]:
    """The audience of a data set that has one, and what of it is simulated.

    Raises:
        RequestError: this data set has none.
    """
    if data not in ABOUT:
        raise RequestError("audience", data, "there is one for " + " and ".join(ABOUT))
    return (Audience(movielens()) if data == "ml-100k" else Population()), ABOUT[data]


class Visitors:
    """A crowd that visits the service over HTTP at a steady rate.

    Args:
        crowd: who they are.
        client: the way to the service with the rank token.
        feedback: the way to it with the feedback token.
        about: what of them is simulated, in words.
        rate: visits a second; the next visit waits for the one before.
    """

    def __init__(self, crowd: Crowd, client: Client, feedback: Client, *, about: str, rate: float = 10.0) -> None:
        self.crowd, self.client, self.feedback, self.rate = crowd, client, feedback, rate
        self.diary = Diary(about=about)
        self._version = ""

    def run(self, stop: Flag) -> Iterator[Diary]:
        """Visit until told to stop; yields the diary after each visit."""
        following = time.monotonic()
        while not stop.is_set():
            try:
                self._visit()
            except RequestError:  # counted in the diary; she comes again
                stop.wait(0.5)
            yield self.diary
            following = max(following + 1 / self.rate, time.monotonic() - 1.0)
            stop.wait(max(0.0, following - time.monotonic()))

    def _visit(self) -> None:
        reactions: list[Event] = []
        found = visit(self.crowd, self._rank, reactions.append, now=int(time.time() * 1000))
        self.diary.satisfaction.setdefault(self._version, Satisfaction()).add(found)
        self.diary.recent.append((found.satisfaction, found.oracle, found.chance))
        if reactions:
            # sent together when she leaves; a visit's reactions follow each other within seconds
            answer = self._ask(self.feedback, "/v1/feedback", reactions)
            self.diary.events += len(reactions) if answer.status == 200 else 0

    def _rank(self, user: str, items: Sequence[str]) -> tuple[str, Sequence[str]]:
        body: dict[str, Any] = {"user": user}
        if items:
            body |= {"items": list(items), "limit": len(items)}
        answer = self._ask(self.client, "/v1/rank" if items else "/v1/recommend", body)
        self.diary.latency_ms.append(answer.milliseconds)
        if answer.status != 200:
            raise RequestError("/v1/rank", answer.status, "the audience goes on with its next visit")
        self.diary.events += 1
        self._version = answer.body["version"]
        return answer.body["ranking"], [item["id"] for item in answer.body["items"]]

    def _ask(self, client: Client, path: str, body: Any) -> Any:
        try:
            answer = client.send("POST", path, body)
        except NotFound:
            self.diary.answers[0] += 1
            raise
        self.diary.answers[answer.status] += 1
        return answer
