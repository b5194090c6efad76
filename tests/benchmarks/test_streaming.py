import numpy as np
import pytest

from benchmarks.streaming import MOVIELENS, VISIT_MS, live
from ranker import config as declared
from ranker.datasets import MovieLens
from ranker.events import Event, Interaction, Ranking
from ranker.simulation import Audience


@pytest.fixture
def people() -> Audience:
    """Two people who rated forty films each."""
    count = 40
    return Audience(
        MovieLens(
            films={str(n): {} for n in range(count)},
            people={"a": {}, "b": {}},
            users_N=np.repeat(np.array(["a", "b"]), count),
            items_N=np.tile(np.array([str(n) for n in range(count)]), 2),
            values_N=np.tile(np.array([1.0, 3.0, 4.0, 5.0]), count // 2),
            times_N=np.arange(2 * count),
        )
    )


def test_the_live_stream_is_slates_with_predictions_each_followed_by_reactions_to_it(people: Audience) -> None:
    config = declared.load(MOVIELENS)
    found: list[Event] = list(live(people, config, 20, start=1000))
    slates = [event for event in found if isinstance(event, Ranking)]
    assert [slate.time for slate in slates] == [1000 + n * VISIT_MS for n in range(20)]
    assert all(len(item.probabilities or ()) == len(config.objectives) for slate in slates for item in slate.items)
    shown = {slate.id: {item.id for item in slate.items} for slate in slates}
    reactions = [event for event in found if isinstance(event, Interaction)]
    assert reactions
    assert all(reaction.item in shown[reaction.ranking or ""] for reaction in reactions)
