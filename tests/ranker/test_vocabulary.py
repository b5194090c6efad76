import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.catalogue import Catalogue, Item
from ranker.config import parse
from ranker.vocabulary import KINDS, Vocabulary

FIELDS = {"genres": "categories", "year": "number", "minutes": "number", "plot": "text"}
CONFIG = parse({"objectives": [{"name": "click", "event": "click"}], "fields": {"item": FIELDS}})
GENRES = ("Drama", "Horror", "Comedy", "Sci-Fi")


def films(count: int, seed: int = 0) -> list[Item]:
    rng = np.random.default_rng(seed)
    words = ("doctor", "lawyer", "ghost", "wedding", "rocket", "winter")
    return [
        Item(
            f"i{place}",
            {
                "genres": list(rng.choice(GENRES, rng.integers(1, 3), replace=False)),
                "year": int(rng.integers(1960, 2000)),
                "minutes": float(rng.integers(60, 200)),
                "plot": " ".join(rng.choice(words, 2)) + " one two" * int(rng.integers(5, 20)),
            },
        )
        for place in range(count)
    ]


def tagged(items: list[Item], **options: int) -> Vocabulary:
    catalogue = Catalogue(CONFIG)
    for item in items:
        catalogue.put(item)
    vocabulary = Vocabulary(CONFIG, catalogue, **options)
    vocabulary.update()
    return vocabulary


def named(vocabulary: Vocabulary, row: int) -> set[str]:
    columns, _ = vocabulary.tags.of_rows(np.array([row]))
    return {vocabulary.tags.keys[column] for column in columns}


def test_a_film_carries_its_genres_its_decade_its_length_and_the_quarter_it_is_in():
    items = films(60)
    items[7] = Item("i7", {"genres": ["Drama", "Horror"], "year": 1961, "minutes": 61.0, "plot": "ghost " + "so " * 5})
    vocabulary = tagged(items)
    assert named(vocabulary, 7) == {
        "genres=Drama",
        "genres=Horror",
        "year=1960s",
        "year=older",
        "minutes=short",
        "plot length=short",
    }
    kinds = {
        key.partition("=")[0]: KINDS[kind]
        for key, kind in zip(vocabulary.tags.keys, vocabulary.tags.kinds_V, strict=True)
    }
    assert kinds == {"genres": "category", "year": "era", "minutes": "length", "plot length": "length"}


def test_words_that_some_texts_hold_become_tags_and_those_of_many_do_not():
    items = [Item(f"i{place}", {"plot": "everybody " + ("lawyer" if place < 5 else "")}) for place in range(100)]
    assert tagged(items).tags.keys == ("plot=lawyer",)


def test_directions_are_the_mean_of_the_items_less_the_mean_of_all_shrunk():
    items = [Item(f"i{place}", {"genres": "Drama" if place < 4 else "Horror"}) for place in range(12)]
    phi = np.arange(24.0).reshape(12, 2)
    found = tagged(items).tags.directions(phi)
    np.testing.assert_allclose(found[0], (phi[:4].mean(0) - phi.mean(0)) * 4 / 12)
    np.testing.assert_allclose(found[1], (phi[4:].mean(0) - phi.mean(0)) * 8 / 16)


def test_what_is_well_known_follows_the_counts_of_acts():
    vocabulary = tagged(films(40))
    assert vocabulary.update(np.arange(40.0))
    known = vocabulary.tags.columns["popularity=well known"]
    rows = np.flatnonzero(vocabulary.tags.matrix_NV[:, [known]].toarray())
    assert rows.tolist() == [36, 37, 38, 39]
    vocabulary.catalogue.put(Item("new"))
    assert vocabulary.update()
    assert "popularity=little known" in vocabulary.tags.columns


def test_an_item_that_came_with_a_request_carries_what_it_would_carry_in_the_catalogue():
    items = films(80)
    vocabulary = tagged(items)
    for row, item in enumerate(items):
        assert {vocabulary.tags.keys[column] for column in vocabulary.tags.of(item.fields)} == named(vocabulary, row)


def test_rows_that_are_not_tagged_yet_carry_nothing():
    columns, lengths = tagged(films(10)).tags.of_rows(np.array([-1, 10, 3, 99]))
    assert lengths[[0, 1, 3]].tolist() == [0, 0, 0]
    assert len(columns) == lengths[2]


def test_an_empty_catalogue_has_no_tags():
    vocabulary = Vocabulary(CONFIG, Catalogue(CONFIG))
    assert not vocabulary.update()
    assert vocabulary.tags.directions(np.zeros((0, 3))).shape == (0, 3)
    assert len(vocabulary.tags.of({"genres": "Drama"})) == 0


@pytest.mark.parametrize("most", [1, 4, 100])
def test_there_are_never_more_tags_than_asked_for(most):
    assert len(tagged(films(60), most=most).tags) <= most


@given(st.lists(st.integers(0, 59), max_size=8), st.integers(0, 100))
@settings(max_examples=30)
def test_tags_depend_on_the_catalogue_and_not_on_when_they_were_read(cuts, seed):
    items = films(60, seed)
    catalogue = Catalogue(CONFIG)
    vocabulary = Vocabulary(CONFIG, catalogue)
    for place, item in enumerate(items):
        if place in cuts:
            vocabulary.update()
            catalogue.put(Item(items[place // 2].id, {"genres": "Opera"}))  # replaced, and put right below
        catalogue.put(item)
    for item in items:
        catalogue.put(item)
    vocabulary.update()
    at_once = tagged(items).tags
    assert vocabulary.tags.keys == at_once.keys
    np.testing.assert_array_equal(vocabulary.tags.starts, at_once.starts)
    np.testing.assert_array_equal(vocabulary.tags.columns_M, at_once.columns_M)
    assert vocabulary.tags.bands == at_once.bands


def test_carriers_are_found_even_where_the_tag_is_too_rare_for_the_vocabulary():
    items = [*films(40), Item("rare", {"genres": ["Opera"]})]
    vocabulary = tagged(items)
    assert "genres=Opera" not in vocabulary.tags.columns
    assert vocabulary.carriers(["i1", "rare", "never seen"], ["genres=Opera"]).tolist() == [False, True, False]
