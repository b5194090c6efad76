"""Phrases as plain sentences, and plain sentences as phrases.

Understanding is lexical: clauses, negation, the names of tags in any number, and slips of the pen by difflib. What no
name matches may be matched by meaning, where a sentence encoder is given (ranker/sentences.py). What was understood is
returned so that it can be shown, and so is what was not.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranker.vocabulary import KINDS, Phrase, Sign, Tags

#: texts -> unit vectors, one a row
Encode = Callable[[Sequence[str]], NDArray[np.floating]]

#: a slip of the pen is at least this like the name that was meant, and the name at least so long
SLIP, LONG = 0.8, 5
#: a meaning is at least this near, chosen on the sentences of tests/ranker/test_sentences.py
NEAR = 0.5
#: longest name looked for, in words
NAME = 5
#: a text is cut here, in characters
LONGEST = 2000

_AGAINST = frozenset(
    (
        "no not never avoid avoids avoiding less fewer without hate hates hated hating dislike dislikes disliked "
        "dont doesnt cant cannot wont except nothing neither nor stop skip hide remove drop bored tired sick "
        "against isnt arent didnt unlike loathe detest enough"
    ).split()
)
_VERBS = frozenset("avoid avoids avoiding hate hates hated dislike dislikes disliked loathe detest skip hide".split())
#: how the last of a list begins: after "no" only with or, after "I hate" with and as well
_OR, _AND = re.compile(r"^\s*n?or\b|\w\s+n?or\s+\w"), re.compile(r"^\s*(?:n?or|and)\b|\S\s+(?:n?or|and)\s+\S")
_FOR = frozenset(
    (
        "more like likes liked love loves loved loving enjoy enjoys enjoyed want wants prefer prefers adore adores "
        "mostly especially show give please great good favourite favourites favorite favorites fan into need care "
        "watch read"
    ).split()
)
_FILLER = frozenset(
    (
        "a about all also always am an and any anything are articles article as at be been being bit book books but "
        "by can could do does done ever every everything film films find for from get got had has have her him his "
        "how i id if im in instead is it item items its ive joke jokes just kind kinds know lately let lot lots "
        "love made makes make maybe me mine movie movies much music my myself news now of off often on one ones "
        "only or other others our out quite rather reading really recently see set so some somehow something song "
        "songs sort sorts stand still stuff such than that the their them then there these they thing things think "
        "this those though to too up us usually very want was watching we well were what when which who will with "
        "would yes you your"
    ).split()
)
#: ways of speaking that would be read word by word as their opposite
_IDIOMS = (
    (r"\b(?:anything|everything|all|anyone) (?:but|except)\b", " no "),
    (r"\b(?:other|apart|aside) (?:than|from)\b", " no "),
    (r"\bnot (?:only|just)\b", " "),
    (r"\bnot (?:enough|too much)\b", " more "),
    (r"\b(?:cant|cannot|never) get enough\b", " more "),
    (r"\bdont mind\b", " like "),
)
#: other words for the bands, by the value of the tag
_WORDS_FOR = {
    "older": "older old classic classics vintage dated early".split(),
    "newer": "newer new recent modern latest contemporary fresh current".split(),
    "well known": ["well known", "popular", "famous", "mainstream", "blockbuster", "blockbusters", "hits", "known"],
    "little known": ["little known", "obscure", "niche", "hidden gems", "unknown", "lesser known", "underground"],
    "short": "short shorter brief quick".split(),
    "long": "long longer lengthy".split(),
}
_DECADES = {"twenties": 2, "thirties": 3, "forties": 4, "fifties": 5, "sixties": 6, "seventies": 7, "eighties": 8}
_DECADES["nineties"] = 9


@dataclass(frozen=True, kw_only=True)
class Understood:
    """What a text says: its phrases in the order they were written, and the words nothing was made of."""

    phrases: tuple[Phrase, ...] = ()
    unknown: tuple[str, ...] = ()


def render(phrases: Sequence[Phrase], tags: Tags | None = None, *, noun: str = "items") -> list[str]:
    """At most two sentences: what a person likes, then what she avoids.

    Args:
        tags: what each tag is about; without it, that is read off the tag's name.
        noun: what an item is called, in the plural.

    Example:
        >>> render([Phrase("likes", "genres", "Drama"), Phrase("avoids", "genres", "Horror"),
        ...         Phrase("likes", "year", "1990s")], noun="films")
        ['You like Drama and films of the 1990s.', 'You avoid Horror.']
    """
    found = []
    for sign, verb in (("likes", "like"), ("avoids", "avoid")):
        named = [name_of(phrase, tags, noun=noun) for phrase in phrases if phrase.sign == sign]
        if named:
            found.append(f"You {verb} {_listed(named)}.")
    return found


def name_of(phrase: Phrase, tags: Tags | None = None, *, noun: str = "items") -> str:
    """A phrase's tag as a person would say it.

    Example:
        >>> name_of(Phrase("likes", "popularity", "little known")), name_of(Phrase("likes", "price", "low"))
        ('little-known items', 'items with a low price')
    """
    column = None if tags is None else tags.columns.get(phrase.key)
    kind = _guessed(phrase) if tags is None or column is None else KINDS[tags.kinds_V[column]]
    value = phrase.value
    if kind == "era":
        return f"{noun} of the {value}" if value[:1].isdigit() else f"{value} {noun}"
    if kind == "band":
        return f"{noun} with a {value} {phrase.field.replace('_', ' ')}"
    if kind == "popularity":
        return f"{value.replace(' ', '-')} {noun}"
    if kind == "length" and phrase.field.endswith(" length"):
        return f"{noun} with a {value} {phrase.field.removesuffix(' length').replace('_', ' ')}"
    if kind == "length":
        return f"{value} {noun}"
    return f"{noun} about “{value}”" if kind == "text" else value


def _guessed(phrase: Phrase) -> str:
    if re.fullmatch(r"\d{4}s", phrase.value) or phrase.value in ("older", "newer"):
        return "era"
    if phrase.field == "popularity":
        return "popularity"
    if phrase.value in ("short", "long"):
        return "length"
    return "band" if phrase.value in ("low", "high") else "category"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def understand(text: str, tags: Tags, *, encode: Encode | None = None, near: float = NEAR) -> Understood:
    """The phrases that a person's own words stand for.

    A negation holds to the end of its clause, or until a word that says the opposite ("no horror but more comedy").
    The longest name wins; a name that two tags share stands for both of their kinds' first. Words that mean nothing by
    themselves are passed over in silence.

    Args:
        encode: turns texts into unit vectors; with it, words that no name matches are matched by meaning.
        near: how near (cosine) a meaning must be.

    Example:
        >>> tags = Tags(keys=("genres=Comedy", "genres=Horror"), kinds_V=np.zeros(2, np.int64))
        >>> found = understand("more comedies, no horror, something purple", tags)
        >>> [phrase.signed for phrase in found.phrases], found.unknown
        (['likes genres=Comedy', 'avoids genres=Horror'], ('purple',))
    """
    names = _surfaces(tags)
    phrases: dict[str, Phrase] = {}
    unknown: list[str] = []
    for clause in _clauses(text[:LONGEST]):
        words, missed = _words(clause), []
        sign: Sign = "likes"
        place, denied = 0, False
        while place < len(words):
            word = words[place]
            key, length = _longest(words, place, names)
            if key is None and word not in _AGAINST | _FOR | _FILLER:
                key, length = _slipped(words, place, names)
            if key is not None:
                phrases.pop(key, None)  # said again: the last word counts
                phrases[key] = Phrase.of(sign, key)
            elif word in _AGAINST:
                sign, denied = "avoids", True
            elif word in _FOR:  # "not really like" is still against, "no horror, more comedy" is not
                sign = "avoids" if denied else "likes"
            elif word not in _FILLER:
                missed.append((word, sign))
            if key is not None or word not in _AGAINST | _FOR | _FILLER:
                denied = False
            place += length
        for said, meant in _meant(missed, tags, encode, near):
            if meant is None:
                unknown += said.split()
            else:
                phrases.setdefault(meant.key, meant)
    return Understood(phrases=tuple(phrases.values()), unknown=tuple(dict.fromkeys(unknown)))


def _clauses(text: str) -> list[str]:
    """Parts of a text that each stand for themselves; "no horror, war or westerns" is one of them, as is
    "I hate horror, war and westerns".
    """
    plain = re.sub(r"['’`]", "", text.lower())
    for idiom, meaning in _IDIOMS:
        plain = re.sub(idiom, meaning, plain)
    found: list[str] = []
    for sentence in re.split(r"[.;:!?\n]+|\bbut\b|\bwhile\b|\bhowever\b", plain):
        parts: list[str] = []
        for part in sentence.split(","):
            against = [place for place, one in enumerate(parts) if not _AGAINST.isdisjoint(_words(one))]
            bare = (_AGAINST | _FOR).isdisjoint(_words(part))
            lists = _OR if not against or _VERBS.isdisjoint(_words(parts[against[-1]])) else _AND
            if against and bare and lists.search(part):
                parts[against[-1] :] = [" ".join([*parts[against[-1] :], part])]
            else:
                parts.append(part)
        found += parts
    return found


def _meant(
    missed: Sequence[tuple[str, Sign]], tags: Tags, encode: Encode | None, near: float
) -> list[tuple[str, Phrase | None]]:
    if encode is None or not missed or not len(tags):
        return [(word, None) for word, _ in missed]
    # words of one sign that stand together are one thing said
    groups: list[tuple[str, Sign]] = []
    for word, sign in missed:
        if groups and groups[-1][1] == sign:
            groups[-1] = (f"{groups[-1][0]} {word}", sign)
        else:
            groups.append((word, sign))
    known_VD = encode([name_of(Phrase.of("likes", key), tags) for key in tags.keys])
    said_GD = encode([text for text, _ in groups])
    close_GV = said_GD @ known_VD.T
    found: list[tuple[str, Phrase | None]] = []
    for (text, sign), close_V in zip(groups, close_GV, strict=True):
        best = int(close_V.argmax())
        found.append((text, Phrase.of(sign, tags.keys[best]) if close_V[best] >= near else None))
    return found


def _words(text: str) -> list[str]:
    """Words in lower case; "Sci-Fi" is two, "don't" and "Children's" are one, "90's" is 90s."""
    return re.findall(r"[^\W_]+", re.sub(r"['’`]", "", text.lower()))


def _stem(word: str) -> str:
    """Singular and plural alike; crude, but the same for names and for what is written."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _surfaces(tags: Tags) -> dict[str, str]:
    """What each tag may be called, as stems; categories go before the bands, and those before words of texts."""
    order = np.argsort([(0, 1, 2, 1, 2, 3)[kind] for kind in tags.kinds_V], kind="stable")
    found: dict[str, str] = {}
    common = _AGAINST | _FOR | _FILLER
    for column in order.tolist():
        key = tags.keys[column]
        name, _, value = key.partition("=")
        said = [value]
        kind = KINDS[tags.kinds_V[column]]
        if kind == "category":
            said += [part for part in re.split(r"[/&|]", value) if part != value]
        elif re.fullmatch(r"\d{4}s", value):
            said += [
                value[2:],
                *(word for word, digit in _DECADES.items() if value[2] == str(digit) and value < "2000"),
            ]
        elif kind == "band":
            said = [f"{value} {name}", {"low": "lower", "high": "higher"}.get(value, value) + f" {name}"]
        else:
            said += [*_WORDS_FOR.get(value, []), f"{value} {name.removesuffix(' length')}"]
        for one in said:
            words = [_stem(word) for word in _words(one)]
            if words and not (len(words) == 1 and words[0] in common):
                found.setdefault(" ".join(words), key)
                found.setdefault("".join(words), key)
    return found


def _longest(words: Sequence[str], place: int, names: dict[str, str]) -> tuple[str | None, int]:
    stems = [_stem(word) for word in words[place : place + NAME]]
    for length in range(len(stems), 0, -1):
        key = names.get(" ".join(stems[:length]))
        if key is not None:
            return key, length
    return None, 1


def _slipped(words: Sequence[str], place: int, names: dict[str, str]) -> tuple[str | None, int]:
    for length in (2, 1):
        stems = [_stem(word) for word in words[place : place + length]]
        written = " ".join(stems)
        if len(stems) == length and len(written) >= LONG:
            close = difflib.get_close_matches(written, [name for name in names if len(name) >= LONG], 1, SLIP)
            if close:
                return names[close[0]], length
    return None, 1
