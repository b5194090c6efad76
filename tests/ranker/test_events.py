import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker import events
from ranker.errors import EventError

# the examples of Metarank's event format documentation, with our own values
METARANK = [
    {
        "event": "item",
        "id": "81f46c34-a4bb-469c-8708-f8127cd67d27",
        "item": "product1",
        "timestamp": "1599391467000",
        "fields": [
            {"name": "title", "value": "Nice jeans"},
            {"name": "price", "value": 25.0},
            {"name": "color", "value": ["blue", "black"]},
            {"name": "availability", "value": True},
        ],
    },
    {
        "event": "user",
        "id": "81f46c34-a4bb-469c-8708-f8127cd67d27",
        "user": "user1",
        "timestamp": "1599391467000",
        "fields": [{"name": "age", "value": 33}, {"name": "gender", "value": "m"}],
    },
    {
        "event": "ranking",
        "id": "81f46c34-a4bb-469c-8708-f8127cd67d27",
        "timestamp": "1599391467000",
        "user": "user1",
        "session": "session1",
        "fields": [{"name": "query", "value": "cat"}, {"name": "source", "value": "search"}],
        "items": [
            {"id": "item3", "fields": [{"name": "relevancy", "value": 2.0}]},
            {"id": "item1", "fields": [{"name": "relevancy", "value": 1.0}], "label": 1.0},
            {"id": "item2", "relevancy": 0.5},
        ],
    },
    {
        "event": "interaction",
        "id": "0f4c0036-04fb-4409-b2c6-7163a59f6b7d",
        "ranking": "81f46c34-a4bb-469c-8708-f8127cd67d27",
        "timestamp": "1599391467000",
        "user": "user1",
        "session": "session1",
        "type": "purchase",
        "item": "item1",
        "fields": [{"name": "count", "value": 1}, {"name": "shipping", "value": "DHL"}],
    },
]


@pytest.mark.parametrize("example", METARANK, ids=lambda example: example["event"])
def test_metarank_examples_are_accepted_unchanged(example):
    event = events.decode(json.dumps(example).encode())
    assert event.time == 1599391467000
    assert events.key_of(event) in {"product1", "user1"}


def ranking(items):
    return events.decode(
        json.dumps({"event": "ranking", "id": "r", "timestamp": 1, "user": "u", "items": items}).encode()
    )


def test_position_absent_means_list_order_and_null_means_unknown():
    shown = ranking([{"id": "a"}, {"id": "b", "position": None}, {"id": "c", "position": 7}])
    assert events.positions_of(shown) == [0, -1, 7]


def test_a_null_position_survives_encoding():
    shown = ranking([{"id": "a", "position": None}])
    assert events.positions_of(events.decode(events.encode(shown))) == [-1]


BASE = '{"event":"interaction","id":"1","timestamp":1,"user":"u","item":"i","type":"c"'


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "[]",
        "null",
        '{"event":"purchase"}',
        '{"event":"forget","timestamp":1,"user":"u"}',
        '{"event":"forget","id":"","timestamp":1,"user":"u"}',
        '{"event":"forget","id":"1","timestamp":-5,"user":"u"}',
        '{"event":"forget","id":"1","timestamp":"soon","user":"u"}',
        '{"event":"forget","id":"1","timestamp":"inf","user":"u"}',
        '{"event":"forget","id":"1","timestamp":"nan","user":"u"}',
        '{"event":"forget","id":"1","timestamp":1,"user":7}',
        BASE + ',"value":NaN}',
        BASE + ',"value":1e999}',
        BASE + ',"value":"much"}',
        '{"event":"ranking","id":"1","timestamp":1,"user":"u","items":[]}',
        '{"event":"ranking","id":"1","timestamp":1,"user":"u","items":[{"id":"a","propensity":0}]}',
        '{"event":"comparison","id":"1","timestamp":1,"user":"u","preferred":"a","over":"b","outcome":"maybe"}',
    ],
)
def test_what_is_not_an_event_is_refused_with_a_reason(raw):
    with pytest.raises(EventError) as caught:
        events.decode(raw.encode())
    assert caught.value.remedy


def test_ten_thousand_and_one_items_are_too_many():
    with pytest.raises(EventError, match="10000"):
        ranking([{"id": str(i)} for i in range(10_001)])


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(EventError):
        events.decode(b'{"event":"forget","id":"\xff","timestamp":1,"user":"u"}')


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_event_error(raw):
    with contextlib.suppress(EventError):
        events.decode(raw)


@given(st.integers(0, 2**53), st.sampled_from([int, float, str]))
def test_timestamps_mean_the_same_as_number_or_text(stamp, form):
    raw = json.dumps({"event": "forget", "id": "1", "timestamp": form(stamp), "user": "u"}).encode()
    assert events.decode(raw).time == stamp


def test_the_far_future_and_foreign_tenants_are_refused():
    event = events.Forget(id="1", timestamp=100_000, user="u", tenant="theirs")
    with pytest.raises(EventError, match="ahead of the clock"):
        events.admit(event, now_ms=0)
    with pytest.raises(EventError, match="belongs to 'ours'"):
        events.admit(event, now_ms=100_000, tenant="ours")
    assert events.admit(event, now_ms=100_000, tenant="theirs") is event


def test_a_body_is_one_event_an_array_or_lines():
    assert events.split_batch(b' {"a": 1} ') == [b'{"a": 1}']
    assert events.split_batch(b'{\n "a": 1\n}') == [b'{\n "a": 1\n}']
    assert events.split_batch(b'[{"a": 1}, {"b": 2}]') == [b'{"a": 1}', b'{"b": 2}']
    assert events.split_batch(b'{"a": 1}\n\nnot json\n') == [b'{"a": 1}', b"not json"]
    with pytest.raises(EventError):
        events.split_batch(b"  ")


def test_the_published_schema_is_the_one_of_the_code():
    published = Path(__file__).parents[2] / "docs" / "events.schema.json"
    assert json.loads(published.read_text()) == events.schema(), (
        "run: python -m ranker.events > docs/events.schema.json"
    )


def test_interactions_decode_at_200000_a_second():
    raw = (BASE + ',"fields":[],"ranking":"r470302011"}').encode()
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(20_000):
            events.decode(raw)
        rates.append(20_000 / (time.perf_counter() - start))
    assert max(rates) > 200_000


@pytest.mark.parametrize("value", ["yes", 1.0, "true"])
def test_an_item_is_withdrawn_by_true_or_false_alone(value):
    def item(said):
        return events.Item(id="e", timestamp=0, item="a", fields=[events.Field("withdrawn", said)])

    for said in (True, False):
        assert events.admit(item(said), now_ms=0)
    with pytest.raises(EventError, match=r"withdrawn.*send true to stop"):
        events.admit(item(value), now_ms=0)
