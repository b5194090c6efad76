import numpy as np
import pytest

from benchmarks import retrieval


@pytest.fixture(scope="module")
def known() -> retrieval.World:
    return retrieval.world(3000, 10)


def test_items_lie_near_their_interests_and_people_want_what_there_is(known: retrieval.World) -> None:
    assert known.interests_NC.sum(1) == pytest.approx(np.ones(3000))
    sizes = [len(rows) for rows in known.members]
    assert sizes[0] > 3 * sizes[20] > 0
    for person in known.people:
        assert person.target_C.sum() == pytest.approx(1)
        assert person.least == max(person.own)
        mine = known.interests_NC[:, person.least] == 1
        scores = known.lines_NX @ person.own[person.least]
        assert scores[mine].mean() > scores.mean()


def test_recall_counts_the_least_popular_interest_apart(known: retrieval.World) -> None:
    least = known.people[0].least
    inside = known.members[least][:2].astype(np.int64)
    outside = np.flatnonzero(known.interests_NC[:, least] == 0)[:2]
    one = retrieval.World(
        lines_NX=known.lines_NX, interests_NC=known.interests_NC, members=known.members, people=known.people[:1]
    )
    wanted = np.concatenate([inside, outside])
    found = retrieval.against([wanted], [wanted[1:]], one)
    assert found == {"recall@500": 0.75, "recall_least": 0.5, "held": 1.0}


def test_every_arm_is_measured(known: retrieval.World) -> None:
    rows = {row["arm"]: row for row in retrieval.searching(known)}
    for arm in ("faiss flat", "index", "by interest, share 0.7"):
        assert rows[arm]["recall@500"] == 1.0
        assert rows[arm]["p50_ms"] > 0
    assert rows["by interest, share 0.7"]["held"] >= rows["index"]["held"]
    assert {"add 1", "replace 1,000", "remove 1", "built anew"} <= rows.keys()
