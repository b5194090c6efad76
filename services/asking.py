"""The ids of questions: they say what was asked and prove that we asked it of this person, so nothing need be kept.

An id holds the two items in the order shown, the wording, and whether the pair was asked before, signed for the user
with the keys of served slates (services/tokens.py).
"""

from msgspec import DecodeError, Struct, json

from ranker.errors import EventError, RequestError
from ranker.interview import WORDINGS, Turn, Wording
from services.tokens import SERVED, Signer

#: ids of our questions begin like this
ASKED = "plq_"
#: what the log keeps of an id: the prefix and its nonce, enough to tell questions apart
SHORT = len(ASKED) + 12


class Asked(Struct, frozen=True, array_like=True):
    """What was asked."""

    first: str
    second: str
    wording: Wording
    again: bool = False

    @property
    def pair(self) -> frozenset[str]:
        """The two items, in no order."""
        return frozenset((self.first, self.second))


_decode = json.Decoder(Asked).decode


def ask(signer: Signer, user: str, turn: Turn, now: int) -> str:
    """The id of this question to this user.

    Units: now in ms.
    """
    asked = Asked(*turn.items, turn.wording, turn.again)
    return ASKED + signer.sign(_purpose(user), json.encode(asked).decode(), now).removeprefix(SERVED)


def read(signer: Signer, user: str, question: str, thing: str = "question") -> Asked:
    """What the question with this id asked the user.

    Args:
        thing: where the id stood, for the error.

    Raises:
        RequestError: 422, we never asked this user that.
    """
    try:
        if not question.startswith(ASKED):
            raise EventError(thing, question)
        asked = _decode(signer.verify(SERVED + question.removeprefix(ASKED), _purpose(user)))
    except (EventError, DecodeError):
        remedy = f"send the id of a question that GET /v1/users/{{id}}/question gave for {user!r}, unchanged"
        error = RequestError(thing, question, remedy)
        error.problem = "was never asked of this user"
        raise error from None
    return asked


def text(wording: str) -> str:
    """The question as a person reads it."""
    return WORDINGS["skip" if wording == "skip" else "rather"]


def _purpose(user: str) -> str:
    """A name no slate is signed for, so that neither id can pass for the other."""
    return f"question\0{user}"
