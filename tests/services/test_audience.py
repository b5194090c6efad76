import threading
from typing import Any

import pytest

from ranker.errors import NotFound, RequestError
from ranker.simulation import Population, Tastes
from services.audience import Visitors, crowd
from services.client import Answer

TASTES = Tastes(users=20, items=30, seed=3)


class Service:
    """Answers like the service: the given items in reverse, or the first ten of the catalogue."""

    def __init__(self, *, statuses: list[int] | None = None) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.statuses = statuses or []

    def send(self, method: str, path: str, body: Any = None) -> Answer:
        self.sent.append((path, body))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            raise NotFound("service", "url", "start it")
        items = [{"id": f"s{place}"} for place in range(10)]
        number = len(self.sent)
        return Answer(status, {"version": f"v{1 + number // 8}", "ranking": f"r{number}", "items": items}, 2.0)


def visitors(rank: Service, feedback: Service) -> Visitors:
    return Visitors(Population(TASTES), rank, feedback, about="synthetic", rate=1e6)  # type: ignore[arg-type]


def run(found: Visitors, visits: int) -> None:
    stop = threading.Event()
    for number, _ in enumerate(found.run(stop)):
        if number + 1 == visits:
            stop.set()


def test_a_population_asks_for_recommendations_and_its_reactions_are_sent() -> None:
    rank, feedback = Service(), Service()
    found = visitors(rank, feedback)
    run(found, 10)
    assert [path for path, _ in rank.sent] == ["/v1/recommend"] * 10
    assert {path for path, _ in feedback.sent} == {"/v1/feedback"}
    for _, events in feedback.sent:
        assert {event.ranking for event in events} <= {f"r{number}" for number in range(1, 11)}
        assert [event.time for event in events] == sorted(event.time for event in events)


def test_satisfaction_is_kept_by_version_and_compared_with_chance_and_the_best() -> None:
    found = visitors(Service(), Service())
    run(found, 20)
    facts = found.diary.facts()
    assert facts["visits"] == sum(version["visits"] for version in facts["versions"].values()) == 20
    assert list(facts["versions"]) == ["v1", "v2", "v3"]
    assert facts["first"] == facts["versions"]["v1"]["satisfaction"]
    assert facts["chance"] < facts["oracle"] <= 1
    assert facts["answers"]["200"] >= 20
    assert facts["audience"] == "synthetic"


def test_a_refused_or_lost_answer_is_counted_and_the_audience_goes_on() -> None:
    rank = Service(statuses=[503, 0, 200])
    found = visitors(rank, Service())
    run(found, 3)
    assert found.diary.answers[503] == 1
    assert found.diary.answers[0] == 1
    assert sum(s.visits for s in found.diary.satisfaction.values()) == 1


def test_before_the_first_visit_there_are_no_figures() -> None:
    facts = visitors(Service(), Service()).diary.facts()
    assert (facts["visits"], facts["satisfaction"], facts["first"], facts["p50_ms"]) == (0, None, None, None)


def test_data_without_a_truth_has_no_audience() -> None:
    with pytest.raises(RequestError, match="there is one for ml-100k and synthetic"):
        crowd("my.jsonl")
