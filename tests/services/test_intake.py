"""services/intake.py: what needs no HTTP to be tested; the rest is in test_api.py."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker import events
from ranker.errors import RequestError
from services import intake
from services.tokens import Signer

NOW = 1_700_000_000_000
FEEDBACK = frozenset({"feedback"})


def take(body: bytes, folder: Path) -> intake.Intake:
    return intake.take(body, signer=Signer(folder), scopes=FEEDBACK, tenant="ours", now_ms=NOW)


def click(n: int, **changes: object) -> bytes:
    made = {"event": "interaction", "id": f"e{n}", "timestamp": NOW, "user": "u", "item": "i", "type": "click"}
    return msgspec.json.encode({**made, **changes})


def test_a_foreign_tenant_and_an_event_that_no_record_can_hold_are_refused(tmp_path: Path) -> None:
    words = [{"name": f"f{n}", "value": "x" * 1000} for n in range(1100)]
    taken = take(b"\n".join([click(0, tenant="ours"), click(1, tenant="theirs"), click(2, fields=words)]), tmp_path)
    assert [event.id for event in taken.admitted] == ["e0"]
    assert [result.thing for result in taken.results] == [None, "tenant", "event"]
    assert taken.refused == 2


@given(good=st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_event_has_its_own_result_in_its_place(
    tmp_path_factory: pytest.TempPathFactory, good: list[bool]
) -> None:
    lines = [click(n) if fine else b'{"event": "interaction"}' for n, fine in enumerate(good)]
    taken = take(b"\n".join(lines), tmp_path_factory.getbasetemp() / "intake-keys")
    assert [result.index for result in taken.results] == list(range(len(good)))
    assert [result.status == "accepted" for result in taken.results] == good
    assert [event.id for event in taken.admitted] == [f"e{n}" for n, fine in enumerate(good) if fine]


@given(st.binary(max_size=60))
def test_no_body_can_do_worse_than_a_deliberate_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    try:
        taken = take(body, tmp_path_factory.getbasetemp() / "intake-keys")
    except (RequestError, events.EventError):
        return
    assert len(taken.results) >= 1


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 2**45), min_size=1))
def test_an_evidence_token_comes_back_as_it_was(places: dict[int, int]) -> None:
    tokens = intake.read_token(intake.evidence_token("the-log", list(places.items())))
    assert {token.partition: token.offset for token in tokens} == places
    assert {token.log for token in tokens} == {"the-log"}


@given(st.text(max_size=60))
def test_any_other_text_is_no_evidence_token(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert intake.read_token(text) is not None
