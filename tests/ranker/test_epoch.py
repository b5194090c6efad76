import threading

import numpy as np
import pytest
import torch

from ranker import events
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Inputs, Objective
from ranker.epoch import Epoch, Told
from ranker.errors import DataError
from ranker.evidence import Act, Evidence
from ranker.golden import Golden
from ranker.inference import Inference
from ranker.model import Model
from ranker.registry import Registry

CONFIG = Config(
    objectives=(Objective(name="click", event="click"),),
    fields=Inputs(item={"genre": "category"}),
    interests="genre",
    scale="tiny",
)
NOW = 10**9


def some(count: int, start: int = 0) -> list[Item]:
    return [Item(f"i{n}", {"genre": "abcd"[n % 4]}, n) for n in range(start, start + count)]


def teller(scale: float = 1.0):
    def tell(rows: np.ndarray) -> Told:
        lines = np.stack([np.cos(rows * 0.7), np.sin(rows * 0.7), rows / 100], 1).astype(np.float32)
        return Told(scale * lines, rows.astype(np.float32))

    return tell


QUERY = np.array([0.0, 0.0, 1.0], np.float32)


def test_the_first_version_tells_and_the_lists_come_behind():
    epoch, items = Epoch("v1", flat=20), some(50)
    assert epoch.take(items, teller()) == 1
    assert epoch.index.search(QUERY, 2)[0].tolist() == [49, 48]
    epoch.wait()
    assert (epoch.builds, len(epoch.index.lists) > 1) == (1, True)
    assert epoch.index.search(QUERY, 2, exact=True)[0].tolist() == [49, 48]
    assert epoch.take(items, teller(-1)) == 1
    assert epoch.born_N.tolist() == list(range(50))


def test_new_and_replaced_items_are_told_by_whoever_comes_first():
    epoch, items = Epoch(flat=20), some(50)
    epoch.take(items, teller())
    epoch.wait()
    more = [items[0], Item("i1", {}, 7), *items[2:], *some(3, 50)]
    assert epoch.take(more, teller(100)) == 2
    assert epoch.take(more, teller(-1)) == 2
    assert epoch.index.search(QUERY, 4, exact=True)[0].tolist() == [52, 51, 50, 1]
    assert epoch.index.vectors(np.array([2])) == pytest.approx(teller()(np.array([2])).vectors_NX)
    assert epoch.born_N[1] == 7


def without(items: list[Item], *rows: int) -> list[Item]:
    return [Item(i.id, {**i.fields, "withdrawn": True}, i.first_seen) if n in rows else i for n, i in enumerate(items)]


def test_a_withdrawn_item_is_not_found_until_it_is_brought_back():
    epoch, items = Epoch(flat=20), some(50)
    epoch.take(without(items, 49), teller())
    epoch.wait()
    assert epoch.index.search(QUERY, 2, exact=True)[0].tolist() == [48, 47]
    epoch.take(gone := without(items, 48), teller())
    assert epoch.index.search(QUERY, 2, exact=True)[0].tolist() == [49, 47]
    after = Epoch("v2", before=epoch, flat=20)
    after.take(gone, teller())
    after.wait()
    assert (len(after.index), after.index.holds(np.array([48])).any()) == (49, False)
    after.take(items, teller())
    assert after.index.search(QUERY, 2, exact=True)[0].tolist() == [49, 48]


def test_what_is_withdrawn_while_it_is_built_stays_out():
    items, gate = some(50), threading.Event()
    first = Epoch("v1", flat=20)
    first.take(items, teller())
    first.wait()
    epoch = Epoch("v2", before=first, flat=20)

    def slow(rows: np.ndarray) -> Told:
        if threading.current_thread() is not threading.main_thread():
            gate.wait(10)
        return teller()(rows)

    epoch.take(items, slow)
    more = [*items, *some(2, 50)]
    epoch.take(without(more, 49), teller())
    epoch.take(without(more, 49, 51), teller())
    gate.set()
    epoch.wait()
    assert epoch.index is not first.index
    assert epoch.index.search(QUERY, 2, exact=True)[0].tolist() == [50, 48]


def test_what_comes_while_it_is_built_is_not_lost():
    epoch, items, gate = Epoch(flat=20), some(50), threading.Event()
    first = Epoch("v1", flat=20)
    first.take(items, teller())
    first.wait()
    epoch = Epoch("v2", before=first, flat=20)

    def slow(rows: np.ndarray) -> Told:
        if threading.current_thread() is not threading.main_thread():
            gate.wait(10)
        return teller(-1)(rows)

    epoch.take(items, slow)
    assert epoch.index is first.index  # the old vectors answer meanwhile
    epoch.take([*items, *some(2, 50)], teller(9))
    assert epoch.index.search(QUERY, 2, exact=True)[0].tolist() == [51, 50]
    gate.set()
    epoch.wait()
    assert epoch.index.search(QUERY, 3, exact=True)[0].tolist() == [51, 50, 0]
    assert first.index.search(QUERY, 1, exact=True)[0].tolist() == [49]


def test_what_ends_the_builder_is_said_and_the_index_stays():
    first, items = Epoch(flat=20), some(50)
    first.take(items, teller())
    first.wait()
    epoch = Epoch(before=first, flat=20)

    def broken(rows: np.ndarray) -> Told:
        if threading.current_thread() is not threading.main_thread():
            raise DataError("rows", len(rows), "none")
        return teller()(rows)

    epoch.take(items, broken)
    epoch.wait()
    with pytest.raises(DataError):
        epoch.take(items, teller())
    assert epoch.index.search(QUERY, 1, exact=True)[0].tolist() == [49]


def test_recall_says_what_older_vectors_cost():
    epoch = Epoch(flat=100)
    assert epoch.recall(teller(), 5) is None
    epoch.take(some(50), teller())
    epoch.asked(QUERY)
    assert epoch.recall(teller(), 5) == 1.0
    assert epoch.recall(teller(-1), 5) == 0.0


def catalogue_of(items: list[Item]) -> Catalogue:
    catalogue = Catalogue(CONFIG)
    for item in items:
        catalogue.put(item)
    return catalogue


def test_a_large_catalogue_is_scored_and_searched_like_a_small_one():
    catalogue = catalogue_of(some(60))
    weights = Model(CONFIG, torch.Generator().manual_seed(0)).state_dict()
    small, large = Inference(CONFIG, weights), Inference(CONFIG, weights, cached=30, epoch=Epoch("v1", flat=1000))
    for inference in (small, large):
        inference.attach(catalogue)
    evidence = Evidence(history=(Act("i3", "click", NOW), Act("strange", "click", NOW)))
    one, other = small.taste(evidence, NOW), large.taste(evidence, NOW)
    assert other.mean_K == pytest.approx(one.mean_K, abs=1e-6)
    rows = np.arange(60)
    found = [i.score(one, user={}, request={}, rows=rows, now=NOW) for i in (small, large)]
    assert found[1].logits_NT == pytest.approx(found[0].logits_NT, abs=1e-5)
    target = np.array([0.7, 0.1, 0.1, 0.1])
    how = {"target_C": target, "share": 0.5}
    assert large.retrieve(one, 20, **how).rows.tolist() == small.retrieve(one, 20, **how).rows.tolist()
    assert large.impressions().tolist() == small.impressions().tolist()
    assert large.fresh(58).sum() == 2
    assert large._side.tail_NX.nbytes == 0


def test_versions_of_an_epoch_share_its_index_and_score_with_their_own_weights():
    catalogue = catalogue_of(some(60))
    epoch = Epoch("v1")
    one, other = (
        Inference(CONFIG, Model(CONFIG, torch.Generator().manual_seed(seed)).state_dict(), cached=30, epoch=epoch)
        for seed in (0, 1)
    )
    one.attach(catalogue)
    index = epoch.index
    other.attach(catalogue)
    assert epoch.index is index
    taste = one.taste(Evidence(), NOW)
    scores = [i.score(taste, user={}, request={}, rows=np.arange(5), now=NOW).logits_NT for i in (one, other)]
    assert not np.allclose(*scores)
    catalogue.put(Item("new", {"genre": "a"}, 99))
    other.attach(catalogue)
    assert len(epoch.index) == 61
    assert 60 not in one.retrieve(taste, 61).rows  # it does not know the item yet
    one.attach(catalogue)
    assert 60 in one.retrieve(taste, 61).rows
    # what is in a category was told when the items were taken up, not by a request
    assert len(epoch.index.part(0, lambda _: pytest.fail("asked"), catalogue.interests_NC[:, 0])) == 16
    assert one.recall(61) == other.recall(61) == 1.0
    assert other.recall(5) < 1.0
    small = Inference(CONFIG, Model(CONFIG, torch.Generator().manual_seed(0)).state_dict())
    small.attach(catalogue)
    assert small.recall(5) is None


@pytest.mark.parametrize("cached", [1000, 30])
def test_an_item_event_withdraws_an_item_from_what_is_recommended(cached):
    catalogue = catalogue_of(some(60))
    inference = Inference(CONFIG, Model(CONFIG, torch.Generator().manual_seed(0)).state_dict(), cached=cached)
    taste, how = inference.taste(Evidence(), NOW), {"target_C": np.full(4, 0.25), "share": 0.5}
    for said, there in ((None, True), (True, False), (False, True), (True, False)):
        if said is not None:
            fields = [events.Field("withdrawn", said)]
            catalogue.fold(events.Item(id="e", timestamp=NOW, item="i7", fields=fields))
        inference.attach(catalogue)
        found = inference.retrieve(taste, 100, **how).rows
        assert (len(found), 7 in found) == (59 + there, there)
        catalogue.put(Item("i8", {"genre": "b"}, 3))  # another one's change does not bring it back
        inference.attach(catalogue)
        assert (7 in inference.retrieve(taste, 100, **how).rows) is there


def test_an_epoch_lasts_for_so_many_versions(tmp_path):
    registry = Registry(tmp_path)
    golden = Golden((), (), ())

    def save(parent: str | None) -> str:
        epoch = registry.epoch(parent, 3)
        return registry.save({"w": torch.ones(1)}, CONFIG, metrics={}, golden=golden, parent=parent, index_epoch=epoch)

    first = save(None)
    second, third = save(first), save(first)
    fourth = save(third)
    found = [registry.manifest(version).index_epoch for version in (first, second, third, fourth, save(fourth))]
    assert found == [None, first, first, None, fourth]


def test_a_version_goes_on_with_the_epoch_in_use_where_it_is_its_own():
    used = Epoch("v1")
    assert Epoch.of("v1", used) is used
    assert Epoch.of("v2", used)._before is None  # nothing to answer with yet
    used.take(some(3), teller())
    assert Epoch.of("v2", used)._before is used
    assert Epoch.of("v1").version == "v1"
