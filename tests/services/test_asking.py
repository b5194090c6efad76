"""services/asking.py: the id of a question proves what was asked, and of whom."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.errors import RequestError
from ranker.interview import Turn, Wording
from services import asking
from services.tokens import Signer
from tests.services.conftest import NOW_MS


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


def test_a_question_id_proves_what_was_asked_and_of_whom(signer: Signer) -> None:
    turn = Turn(number=3, items=("é\0", 'with "quotes"'), wording="skip", again=True, gain=0.1)
    name = asking.ask(signer, "ann", turn, NOW_MS)
    asked = asking.read(signer, "ann", name)
    assert (asked.first, asked.second, asked.wording, asked.again) == (*turn.items, "skip", True)
    with pytest.raises(RequestError, match="never asked"):
        asking.read(signer, "bob", name)
    with pytest.raises(RequestError, match="never asked"):
        asking.read(signer, "question\0ann", name)
    signer.rotate()
    assert asking.read(signer, "ann", name) == asked


def test_an_id_says_no_more_than_a_page_must_carry(signer: Signer) -> None:
    turn = Turn(number=1, items=("i1", "i2"), wording="rather", again=False, gain=0.1)
    one, other = (asking.ask(signer, "ann", turn, NOW_MS) for _ in range(2))
    assert len(one) < 100
    assert one[: asking.SHORT] != other[: asking.SHORT]  # what the log keeps tells two askings apart


@given(st.tuples(st.text(), st.text()), st.sampled_from(["rather", "skip"]), st.booleans(), st.text(), st.text())
def test_whatever_the_ids_what_was_asked_comes_back_for_its_user_alone(
    pair: tuple[str, str], wording: Wording, again: bool, user: str, other: str
) -> None:
    turn = Turn(number=1, items=pair, wording=wording, again=again, gain=0.0)
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer(Path(folder))
        name = asking.ask(signer, user, turn, NOW_MS)
        asked = asking.read(signer, user, name)
        assert ((asked.first, asked.second), asked.wording, asked.again) == (pair, wording, again)
        if other != user:
            with pytest.raises(RequestError):
                asking.read(signer, other, name)
