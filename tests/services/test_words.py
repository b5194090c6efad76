"""services/words.py: what a person writes of her taste, understood or refused with the nearest that would do."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.errors import RequestError
from ranker.evidence import Words
from ranker.vocabulary import Tags
from services.dialogue import SummaryRequest
from services.words import Heard, hear

KEYS = ("genres=comedy", "genres=drama", "genres=film-noir", "genres=horror")
TAGS = Tags(
    keys=KEYS,
    kinds_V=np.zeros(4, np.int64),
    counts_V=np.full(4, 9),
    share_V=np.array([0.5, 0.2, 0.1, 0.2]),
)


def said(before: Words | None = None, **lists: Any) -> Heard:
    return hear(SummaryRequest(**lists), before or Words(), TAGS)


def test_phrases_are_keys_or_words() -> None:
    found = said(likes=["genres=drama", "comedies"], avoids=["Film Noir"])
    assert found.words == Words(("genres=drama", "genres=comedy"), ("genres=film-noir",))
    assert [(one.sign, one.key, one.text) for one in found.understood] == [
        ("likes", "genres=drama", "drama"),
        ("likes", "genres=comedy", "comedy"),
        ("avoids", "genres=film-noir", "film-noir"),
    ]


def test_free_text_is_added_and_what_says_nothing_is_named() -> None:
    before = Words(("genres=drama",), ("genres=comedy",))
    found = said(before, text="no horror, more comedies, something purple")
    assert found.words == Words(("genres=drama", "genres=comedy"), ("genres=horror",))
    assert found.unknown == ["purple"]


def test_lists_that_are_left_out_stay_and_empty_ones_take_back() -> None:
    before = Words(("genres=drama",), ("genres=comedy",), ("genres=horror",))
    assert said(before, likes=[]).words == Words((), ("genres=comedy",), ("genres=horror",))
    assert said(before, struck=[]).words == Words(("genres=drama",), ("genres=comedy",))
    assert said(before, likes=[], avoids=[], struck=[]).words == Words()


def test_what_is_struck_is_no_longer_liked_and_what_is_liked_again_no_longer_struck() -> None:
    before = Words(("genres=drama", "genres=comedy"), ("genres=horror",))
    assert said(before, struck=["drama"]).words == Words(("genres=comedy",), ("genres=horror",), ("genres=drama",))
    assert said(before, struck=["likes genres=horror"]).words.avoids == ("genres=horror",)
    assert said(before, struck=["avoids horror"]).words == Words(before.likes, (), ("avoids genres=horror",))
    assert said(Words(struck=("genres=drama",)), text="drama please").words == Words(("genres=drama",))
    assert said(Words(struck=("likes genres=drama",)), avoids=["drama"]).words == Words((), ("genres=drama",))


def test_a_change_of_mind_leaves_one_meaning() -> None:
    assert said(Words(("genres=drama",)), avoids=["drama"]).words == Words((), ("genres=drama",))
    assert said(Words((), ("genres=drama",)), likes=["drama"]).words == Words(("genres=drama",))


@pytest.mark.parametrize(
    ("lists", "thing", "remedy"),
    [
        ({}, "summary", "likes"),
        ({"likes": ["genres=drmaa"]}, "likes[0]", "did you mean 'genres=drama'?"),
        ({"likes": ["drama", "xyzzy"]}, "likes[1]", "phrases are, for example, genres=comedy"),
        ({"avoids": ["comedy with a purple xyzzy"]}, "avoids[0]", "for example"),
        ({"struck": ["likes xyzzy"]}, "struck[0]", "for example"),
        ({"likes": [" "]}, "likes[0]", "for example"),
        ({"text": ""}, "text", "leave it out"),
        ({"text": " \n"}, "text", "leave it out"),
        ({"text": "purple xyzzy"}, "text", "for example"),
        ({"likes": ["drama"], "avoids": ["drama"]}, "avoids", "one of the two"),
        ({"likes": ["drama"], "struck": ["drama"]}, "likes", "one of the two"),
        ({"likes": ["drama"], "text": "no drama"}, "avoids", "one of the two"),
        ({"struck": ["drama"], "text": "no drama"}, "avoids", "one of the two"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_could(lists: dict[str, Any], thing: str, remedy: str) -> None:
    with pytest.raises(RequestError) as found:
        said(**lists)
    assert found.value.thing == thing
    assert remedy in found.value.remedy


def test_without_a_vocabulary_the_reason_is_told() -> None:
    with pytest.raises(RequestError, match="no declared fields"):
        hear(SummaryRequest(likes=["drama"]), Words(), Tags())


@given(
    st.lists(st.sampled_from(KEYS), max_size=4),
    st.lists(st.sampled_from(KEYS), max_size=4),
    st.lists(st.sampled_from(["", "likes ", "avoids "]).flatmap(lambda s: st.sampled_from([s + key for key in KEYS]))),
    st.sampled_from(["no horror", "comedies", "more drama but no film noir"]),
)
def test_no_phrase_ever_has_two_meanings(likes: list[str], avoids: list[str], struck: list[str], text: str) -> None:
    before = Words(tuple(dict.fromkeys(likes)), tuple(key for key in dict.fromkeys(avoids) if key not in likes))
    for lists in ({"text": text}, {"struck": struck}, {"struck": struck, "text": text}):
        words = Words()
        with contextlib.suppress(RequestError):  # said and struck at once
            words = said(before, **lists).words
        assert not set(words.likes) & set(words.avoids)
        assert len(set(words.likes)) == len(words.likes)
        for key in words.likes:
            assert key not in words.struck
            assert f"likes {key}" not in words.struck
