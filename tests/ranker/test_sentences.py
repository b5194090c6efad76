import numpy as np
import pytest

from ranker import sentences
from ranker.errors import ConfigError
from ranker.vocabulary import Tags
from ranker.wording import understand

GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
TAGS = Tags(keys=tuple(f"genres={genre}" for genre in GENRES), kinds_V=np.zeros(len(GENRES), np.int64))
#: what a person may write and what is meant; wording.NEAR was chosen on these
MEANT = {
    "scary": "Horror",
    "frightening monsters": "Horror",
    "funny": "Comedy",
    "things that make me laugh": "Comedy",
    "spaceships": "Sci-Fi",
    "aliens and robots": "Sci-Fi",
    "cowboys": "Western",
    "love stories": "Romance",
    "kissing": "Romance",
    "detective": "Crime Mystery",
    "gangsters": "Crime",
    "cartoons": "Animation",
    "battlefield": "War",
    "soldiers": "War",
    "singing and dancing": "Musical",
    "kids": "Children's",
    "car chases and explosions": "Action",
    "swords and dragons": "Fantasy",
    "suspense": "Thriller",
    "true stories": "Documentary",
    "magic": "Fantasy",
    "serious emotional": "Drama",
    "black and white detective": "Film-Noir Mystery",
    "quests": "Adventure",
}
UNRELATED = (
    "purple,my grandmother,tax returns,breakfast,the weather,bicycle repair,wifi password,tuesday,shoes,vegetables,"
    "asdf,invoice,cheap flights,football,my boss"
).split(",")


@pytest.mark.skipif(not sentences.available(), reason="needs the extra `text`: pip install plurank[text]")
@pytest.mark.filterwarnings("ignore")
def test_the_encoder_finds_half_of_what_is_meant_seldom_errs_and_finds_nothing_in_the_unrelated():
    encode = sentences.encoder()
    np.testing.assert_allclose(np.linalg.norm(encode(["scary", "funny"]), axis=1), 1, rtol=1e-5)
    read = {text: {one.value for one in understand(text, TAGS, encode=encode).phrases} for text in MEANT}
    right = [text for text, values in read.items() if values and values <= set(MEANT[text].split())]
    wrong = [text for text, values in read.items() if not values <= set(MEANT[text].split())]
    assert len(right) >= 12
    assert len(wrong) <= 3
    assert not [text for text in UNRELATED if understand(text, TAGS, encode=encode).phrases]


@pytest.mark.skipif(sentences.available(), reason="the extra `text` is installed")
def test_without_the_extra_the_encoder_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"plurank\[text\]"):
        sentences.encoder()
