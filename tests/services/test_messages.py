"""services/messages.py: how a request that does not fit is explained."""

import contextlib
import json
import math
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.calibration import Wish
from ranker.errors import NotFound, RequestError
from services import messages
from services.messages import RankRequest, RecommendRequest, plain, problem_of

DECODER = msgspec.json.Decoder(RankRequest)


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        messages.read(body, DECODER)
    return caught.value


def test_a_request_is_read() -> None:
    body = b'{"user": "u", "items": ["a", {"id": "b", "fields": [{"name": "x", "value": 1}]}], "weights": {"click": 2}}'
    request = messages.read(body, DECODER)
    assert request.items[0] == "a"
    assert messages.named(request.items[1].fields) == {"x": 1}
    assert messages.named({"y": 2}) == {"y": 2}


@pytest.mark.parametrize("asked", [0.5, "personal", {"target": 0.1}, {"strength": 0.2, "order": 1.0}])
def test_calibration_is_asked_for_by_number_word_or_object(asked: Any) -> None:
    body = json.dumps({"user": "u", "items": ["a"], "calibration": asked, "pinned": ["a"], "excluded": ["b"]}).encode()
    request = messages.read(body, DECODER)
    assert request.calibration == (Wish(**asked) if isinstance(asked, dict) else asked)
    assert (request.pinned, request.excluded) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("body", "thing", "value"),
    [
        (b'{"user": 7, "items": ["a"]}', "user", 7),
        (b'{"user": "u", "items": ["a"], "calibration": 7}', "calibration", 7),
        (b'{"user": "u", "items": ["a"], "calibration": "private"}', "calibration", "private"),
        (b'{"user": "u", "items": ["a"], "calibration": {"target": -1}}', "calibration.target", -1),
        (b'{"user": "u", "items": ["a"], "calibration": {"targt": 1}}', "calibration", "targt"),
        (b'{"user": "u", "items": ["a"], "pinned": [""]}', "pinned[0]", ""),
        (b'{"user": "u", "items": ["a"], "weights": {"click": "x"}}', "weights[...]", {"click": "x"}),
        (b'{"user": "u", "items": [3]}', "items[0]", 3),
        (b'{"user": "u", "items": ["a"], "limt": 3}', "body", "limt"),
        (b'{"user": "u", "items": [{"id": "a", "field": {}}]}', "items[0]", "field"),
    ],
)
def test_what_does_not_fit_is_named_with_its_value(body: bytes, thing: str, value: Any) -> None:
    error = refused(body)
    assert (error.thing, error.value, error.status) == (thing, value, 422)
    assert error.remedy


@pytest.mark.parametrize("body", [b"", b"{", b"[1", b'{"user": NaN}', b"\xff", b"nul"])
def test_what_is_not_json_is_400(body: bytes) -> None:
    assert refused(body).status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["user", "items", "id", "fields", "weights", "limit", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(JSON | st.binary(max_size=30))
def test_no_body_can_do_worse_than_a_request_error(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.suppress(RequestError):
        assert messages.read(raw, DECODER).user


def test_recommend_knows_no_items() -> None:
    with pytest.raises(RequestError, match="items"):
        messages.read(b'{"user": "u", "items": ["a"]}', msgspec.json.Decoder(RecommendRequest))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "x" * 10_000, [1] * 10_000, b"\xff", {"a": object()}])
def test_any_value_can_be_quoted_in_json_and_briefly(value: Any) -> None:
    assert len(msgspec.json.encode(plain(value))) < 1000


def test_an_error_keeps_its_status_across_processes() -> None:
    error = RequestError("body", 5, "send less")
    error.status = 413
    assert problem_of(pickle.loads(pickle.dumps(error))).status == 413
    assert problem_of(NotFound("version", "v1", "look")).type == "urn:plurank:not-found"
