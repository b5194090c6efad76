import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.vocabulary import KINDS, Phrase, Tags
from ranker.wording import name_of, render, understand

GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Jazz Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()
KIND_OF = {f"genres={genre}": "category" for genre in GENRES} | {
    "year=1960s": "era",
    "year=1990s": "era",
    "year=newer": "era",
    "year=older": "era",
    "popularity=little known": "popularity",
    "popularity=well known": "popularity",
    "minutes=long": "length",
    "plot length=short": "length",
    "price=low": "band",
    "title=love": "text",
    "title=lawyer": "text",
}
TAGS = Tags(keys=tuple(sorted(KIND_OF)), kinds_V=np.array([KINDS.index(KIND_OF[key]) for key in sorted(KIND_OF)]))


def read(text: str) -> tuple[set[str], tuple[str, ...]]:
    found = understand(text, TAGS)
    return {("+" if one.sign == "likes" else "-") + one.value for one in found.phrases}, found.unknown


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("more jazz, no horror, older movies please", "+Jazz -Horror +older"),
        ("I love comedies but I don't like war", "+Comedy -War"),
        ("I do not really like westerns", "-Western"),
        ("no horror more comedy", "-Horror +Comedy"),
        ("no horror, war, or westerns", "-Horror -War -Western"),
        ("I hate horror, war and westerns, more jazz", "-Horror -War -Western +Jazz"),
        ("neither war nor horror", "-War -Horror"),
        ("anything but musicals", "-Musical"),
        ("less action and more drama", "-Action +Drama"),
        ("can't get enough of film noir!", "+Film-Noir"),
        ("science: no. sci-fi: yes", "+Sci-Fi"),
        ("scifi, childrens films", "+Sci-Fi +Children's"),
        ("films of the 90s, nothing from the sixties", "+1990s -1960s"),
        ("obscure documentaries", "+little known +Documentary"),
        ("popular thrillers; not too long", "+well known +Thriller -long"),
        ("low price, brief texts", "+low +short"),
        ("stories about lawyers", "+lawyer"),
        ("horor and dokumentary", "+Horror +Documentary"),
        ("I liked drama. No drama!", "-Drama"),
        ("", ""),
    ],
)
def test_plain_sentences_are_understood(text, phrases):
    assert read(text)[0] == {
        one.replace("_", " ")
        for one in phrases.replace("little known", "little_known").replace("well known", "well_known").split()
    }


def test_what_was_not_understood_is_returned_without_the_small_words():
    assert read("more jazz with saxophones, please") == ({"+Jazz"}, ("saxophones",))
    assert read("I love it")[0] == set()


@given(st.text(max_size=200))
def test_any_text_can_be_read_and_says_only_what_there_is(text):
    found = understand(text, TAGS)
    assert all(phrase.key in TAGS.columns for phrase in found.phrases)
    assert len({phrase.key for phrase in found.phrases}) == len(found.phrases)
    assert understand(text, TAGS) == found


@given(st.lists(st.sampled_from(TAGS.keys), unique=True, max_size=6), st.data())
def test_what_is_rendered_is_understood_again(keys, data):
    keys = [key for key in keys if key != "title=love"]  # a small word of its own: "I love jazz"
    phrases = [Phrase.of(data.draw(st.sampled_from(("likes", "avoids"))), key) for key in keys]
    again = understand(" ".join(render(phrases, TAGS)), TAGS)
    assert set(again.phrases) == set(phrases)
    assert again.unknown == ()


def test_sentences_name_each_kind_of_tag_as_a_person_would():
    likes = [Phrase.of("likes", key) for key in KIND_OF if not key.startswith("genres=")]
    assert render(likes, TAGS, noun="films") == [
        "You like films of the 1960s, films of the 1990s, newer films, older films, little-known films, "
        "well-known films, long films, films with a short plot, films with a low price, films about “love” and "
        "films about “lawyer”."
    ]
    assert render([Phrase("avoids", "genres", "Horror")]) == ["You avoid Horror."]
    assert render([]) == []


def test_a_name_without_the_vocabulary_is_read_off_the_key():
    assert name_of(Phrase("likes", "year", "1960s"), noun="films") == "films of the 1960s"
    assert name_of(Phrase("likes", "genres", "Drama")) == "Drama"


def test_words_that_no_name_matches_are_matched_by_meaning_where_they_are_near():
    near = {"Horror": [1.0, 0.0], "scary": [0.9, 0.436], "purple": [0.3, 0.954]}

    def encode(texts):
        return np.array([near.get(text, [0.0, -1.0]) for text in texts])

    found = understand("nothing scary, purple", TAGS, encode=encode, near=0.8)
    assert [phrase.signed for phrase in found.phrases] == ["avoids genres=Horror"]
    assert found.unknown == ("purple",)
