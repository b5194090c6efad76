import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranker.catalogue import Catalogue, Item
from ranker.config import parse
from ranker.events import Field
from ranker.events import Item as ItemEvent

CONFIG = parse(
    {
        "objectives": [{"name": "click", "event": "click"}],
        "interests": "genres",
        "fields": {"item": {"genres": "categories"}},
    }
)


def described(item, genres, time=1):
    return ItemEvent(id=f"e-{item}-{time}", timestamp=time, item=item, fields=[Field("genres", genres)])


def test_interests_are_equal_shares_of_the_categories_named():
    catalogue = Catalogue(CONFIG)
    catalogue.fold(described("a", ["noir", "war"]))
    catalogue.fold(described("b", "war"))
    catalogue.fold(described("c", []))
    assert catalogue.categories == ["noir", "war"]
    assert catalogue.interests_NC.tolist() == [[0.5, 0.5], [0, 1], [0, 0]]


def test_rows_are_stable_and_later_fields_win():
    catalogue = Catalogue(CONFIG)
    row = catalogue.fold(described("a", ["noir"], time=5))
    assert catalogue.fold(described("a", ["war"], time=9)) == row
    assert catalogue.get("a") == Item("a", {"genres": ["war"]}, 5)
    assert catalogue.interests_NC[row].tolist() == [0, 1]


def test_items_shown_before_they_are_described_keep_the_time_they_were_first_seen():
    catalogue = Catalogue(CONFIG)
    catalogue.see(["a"], 3)
    catalogue.fold(described("a", ["noir"], time=8))
    assert catalogue.items[0].first_seen == 3
    assert catalogue.find(["a", "z"]).tolist() == [0, -1]


def test_it_grows_past_its_first_size():
    catalogue = Catalogue(CONFIG)
    for n in range(200):
        catalogue.fold(described(f"i{n}", [f"g{n % 30}"]))
    assert len(catalogue) == 200
    assert catalogue.interests_NC.shape == (200, 30)
    np.testing.assert_array_equal(catalogue.interests_NC.sum(axis=1), 1)


def test_inline_fields_have_interests_too():
    catalogue = Catalogue(CONFIG)
    catalogue.fold(described("a", ["noir", "war"]))
    assert catalogue.interests_of({"genres": ["war", "unheard"]}).tolist() == [0, 1]


def test_several_fields_hold_interests_in_equal_parts_each_under_its_own_name() -> None:
    config = parse(
        {
            "objectives": [{"name": "click", "event": "click"}],
            "interests": ["genres", "era"],
            "fields": {"item": {"genres": "categories", "era": "category"}},
        }
    )
    catalogue = Catalogue(config)
    catalogue.put(Item("a", {"genres": ["war", "noir"], "era": "40s"}))
    catalogue.put(Item("b", {"genres": ["war"]}))
    assert catalogue.categories == ["genres=war", "genres=noir", "era=40s"]
    assert catalogue.interests_NC.tolist() == [[0.25, 0.25, 0.5], [1, 0, 0]]
    assert catalogue.interests_of({"era": "40s", "genres": ["unheard"]}).tolist() == [0, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.sampled_from("abcd"), max_size=3)), max_size=30))
def test_members_are_the_rows_with_a_share_whatever_was_replaced(puts):
    catalogue = Catalogue(CONFIG)
    for item, genres in puts:
        catalogue.put(Item(f"i{item}", {"genres": sorted(genres)}))
        for column in range(len(catalogue.categories)):
            wanted = np.flatnonzero(catalogue.interests_NC[:, column] > 0)
            assert sorted(catalogue.members(column).tolist()) == wanted.tolist()
    assert catalogue.members(99).tolist() == []
