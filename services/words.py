"""A person's own words about her taste, checked and made into phrases of the vocabulary.

What is sent replaces list by list; a phrase that is struck is no longer liked or avoided, and one that is written again
is no longer struck.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from ranker.errors import RequestError
from ranker.evidence import Words
from ranker.summary import SIGNS, struck_key
from ranker.vocabulary import Phrase, Sign, Tags
from ranker.wording import Encode, name_of, understand
from services.dialogue import SummaryRequest, Understood

#: keys told where none is near
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a request means.

    Attributes:
        words: all that she says of herself from now on.
        understood: the phrases read out of this request.
        unknown: words of its text that said nothing.
    """

    words: Words
    understood: list[Understood] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def hear(sent: SummaryRequest, before: Words, tags: Tags, encode: Encode | None = None) -> Heard:
    """What the person says of herself after this request.

    Args:
        before: what she said until now.
        encode: a sentence encoder, where there is one.

    Raises:
        RequestError: nothing is said, a phrase is unknown (with the nearest known one) or contradicts another, or
            nothing of the text was understood.
    """
    lists = {"likes": sent.likes, "avoids": sent.avoids, "struck": sent.struck}
    if sent.text is UNSET and all(one is UNSET for one in lists.values()):
        remedy = "send likes, avoids, struck or text; an empty list takes back what was written there"
        raise RequestError("summary", None, remedy)
    understood: list[Understood] = []
    said: dict[Sign, dict[str, None]] = {}
    for sign in SIGNS:
        one = lists[sign]
        kept = before.likes if sign == "likes" else before.avoids
        if one is UNSET:
            said[sign] = dict.fromkeys(kept)
            continue
        said[sign] = {}
        for place, text in enumerate(one):
            for phrase in _phrases(f"{sign}[{place}]", text, tags):
                said[sign][phrase.key] = None
                understood.append(Understood(key=phrase.key, sign=sign, text=name_of(phrase, tags)))
    struck = dict.fromkeys(before.struck)
    new_struck: dict[str, None] = {}
    if sent.struck is not UNSET:
        for place, text in enumerate(sent.struck):
            new_struck |= dict.fromkeys(_struck(f"struck[{place}]", text, tags))
        struck = new_struck
    unknown: list[str] = []
    if sent.text is not UNSET:
        found, unknown = _text(sent.text, tags, encode)
        understood += found
    new = {(one.sign, one.key) for one in understood}
    _insist_on_one_meaning(new, new_struck)
    for sign, key in sorted(new):
        other = said["avoids" if sign == "likes" else "likes"]
        other.pop(key, None)
        said[sign][key] = None
        struck = {text: None for text in struck if struck_key(text)[1] != key}
    for text in new_struck:
        sign_, key = struck_key(text)
        for sign in SIGNS:
            if sign_ in (None, sign):
                said[sign].pop(key, None)
    return Heard(
        words=Words(tuple(said["likes"]), tuple(said["avoids"]), tuple(struck)), understood=understood, unknown=unknown
    )


def _phrases(place: str, text: str, tags: Tags) -> Sequence[Phrase]:
    """The phrases that one entry of a list names; its own sign is the list's."""
    if text in tags.columns:
        return [Phrase.of("likes", text)]
    found = understand(text, tags)
    if not found.phrases or found.unknown:
        error = RequestError(place, text, _nearest(text, tags))
        error.problem = "is no phrase that we know"
        raise error
    return found.phrases


def _struck(place: str, text: str, tags: Tags) -> list[str]:
    sign, key = struck_key(text)
    prefix = "" if sign is None else f"{sign} "
    return [prefix + phrase.key for phrase in _phrases(place, key, tags)]


def _text(text: str, tags: Tags, encode: Encode | None) -> tuple[list[Understood], list[str]]:
    if not text.strip():
        raise RequestError("text", text, "write something, or leave it out")
    found = understand(text, tags, encode=encode)
    if not found.phrases:
        error = RequestError("text", text, _nearest(text, tags))
        error.problem = "says nothing that we understand"
        raise error
    return [Understood(key=one.key, sign=one.sign, text=name_of(one, tags)) for one in found.phrases], list(
        found.unknown
    )


def _insist_on_one_meaning(new: set[tuple[Sign, str]], struck: dict[str, None]) -> None:
    keys = [key for _, key in new]
    gone = {struck_key(text)[1] for text in struck}
    for sign, key in sorted(new):
        if keys.count(key) > 1:
            raise RequestError(sign, key, "it is liked and avoided at once; say one of the two")
        if key in gone:
            raise RequestError(sign, key, "it is said and struck at once; do one of the two")


def _nearest(text: str, tags: Tags) -> str:
    """The valid phrase that is most like this text, or a few."""
    names = {name.lower(): key for key in tags.keys for name in (key, name_of(Phrase.of("likes", key), tags))}
    near = difflib.get_close_matches(text.lower(), names, 1, 0.5)
    if near:
        return f"did you mean {names[near[0]]!r}?"
    if not tags.keys:
        return "the catalogue has no declared fields yet that a phrase could be about"
    most = sorted(range(len(tags)), key=lambda column: -tags.share_V[column])[:EXAMPLES]
    return "phrases are, for example, " + ", ".join(tags.keys[column] for column in most)
