import asyncio
import contextlib
import threading
import time

import pytest

from ranker.errors import StoreUnavailable
from ranker.events import Interaction
from ranker.evidence import EMPTY, Evidence, fold
from services.embedded import Valkey, free_port
from streaming.log import Token
from streaming.store import Applied, AsyncStore, Store, Stored

SOME = fold(EMPTY, Interaction(id="e", timestamp=1, user="u", item="i", type="click", value=3.0))


def test_a_store_that_is_away_is_named_with_the_remedy_and_without_its_password() -> None:
    store = Store(f"valkey://:secret@127.0.0.1:{free_port()}/0", timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match="check that the store runs") as caught:
        store.evidence("u")
    assert "secret" not in str(caught.value)
    assert not store.ping()
    store.close()


pytestmark = pytest.mark.integration


def test_a_batch_is_applied_once_and_only_where_the_store_stands(store: Store) -> None:
    assert store.resume("L", [0, 1]) == {0: 0, 1: 0}
    first = {"u": Stored("L", 0, 4, SOME)}
    assert store.apply_batch("L", 0, first=0, following=5, users=first) == Applied(True, 5)
    assert store.apply_batch("L", 0, first=0, following=5, users={"u": Stored("L", 0, 9)}) == Applied(False, 5)
    assert store.apply_batch("L", 0, first=3, following=9, users={"u": Stored("L", 0, 9)}) == Applied(False, 5)
    assert store.evidence("u") == Stored("L", 0, 4, SOME)
    assert store.resume("L", [0, 1, 2]) == {0: 5, 1: 0, 2: 0}
    assert store.covered() == {"L": {0: 5, 1: 0, 2: 0}}


def test_a_store_that_knows_nothing_of_the_log_says_so(store: Store) -> None:
    assert store.apply_batch("other", 0, first=0, following=5, users={}) == Applied(False, -1)


def test_offsets_keep_all_their_digits(store: Store) -> None:
    high = (1 << 52) - 1
    store.resume("L", [0])
    assert store.apply_batch("L", 0, first=0, following=high, users={}) == Applied(True, high)
    assert store.apply_batch("L", 0, first=high, following=high + 1, users={}) == Applied(True, high + 1)


def test_unknown_users_are_none_and_known_ones_come_in_the_order_asked(store: Store) -> None:
    store.resume("L", [0])
    store.apply_batch("L", 0, first=0, following=1, users={f"u{n}": Stored("L", 0, n) for n in range(50)})
    found = store.evidences(["u7", "nobody", "u3"])
    assert [stored and stored.offset for stored in found] == [7, None, 3]
    assert store.evidences([]) == []


def test_a_replica_fetches_only_the_items_that_changed(store: Store) -> None:
    store.resume("L", [0])
    items = {"a": {"genre": ["x"]}, "b": {"genre": ["y"]}}
    store.apply_batch("L", 0, first=0, following=2, users={}, items=items, seen={"a": 5, "b": 6, "shown": 7})
    mark, found, reset = store.catalogue_changes()
    assert {i.id: (i.fields, i.first_seen) for i in found} == {
        "a": ({"genre": ["x"]}, 5),
        "b": ({"genre": ["y"]}, 6),
        "shown": ({}, 7),
    }
    assert not reset
    assert store.catalogue_changes(mark) == (mark, [], False)
    # nothing new in it: same fields, a later time
    store.apply_batch("L", 0, first=2, following=3, users={}, items={"a": items["a"]}, seen={"b": 9})
    assert store.mark() == mark
    store.apply_batch("L", 0, first=3, following=4, users={}, items={"b": {"genre": ["z"]}}, seen={"a": 1})
    later, found, _ = store.catalogue_changes(mark)
    assert {i.id: (i.fields, i.first_seen) for i in found} == {"a": ({"genre": ["x"]}, 1), "b": ({"genre": ["z"]}, 6)}
    assert store.catalogue_changes(later).items == []
    assert sorted(store.items(["a", "none", "shown"])) == ["a", "shown"]


def test_an_emptied_store_shows_in_the_catalogue(store: Store) -> None:
    store.resume("L", [0])
    store.apply_batch("L", 0, first=0, following=1, users={}, items={"a": {}, "b": {}}, seen={"a": 1, "b": 1})
    mark = store.mark()
    store.clear()
    store.resume("L", [0])
    store.apply_batch("L", 0, first=0, following=1, users={}, items={"c": {}}, seen={"c": 1})
    _, items, reset = store.catalogue_changes(mark)
    assert ([item.id for item in items], reset) == (["c"], True)


def test_a_reader_waits_for_her_own_write(store: Store) -> None:
    store.resume("L", [0])
    token = Token("L", 0, 4)
    began = time.monotonic()
    assert not store.wait_for(token, timeout=0.1)
    assert 0.05 < time.monotonic() - began < 0.3
    late = threading.Timer(0.1, lambda: store.apply_batch("L", 0, first=0, following=5, users={}))
    late.start()
    assert store.wait_for(token, timeout=2.0)
    assert not store.holds(Token("L", 0, 5))
    late.join()


def test_the_event_loop_reads_the_same(store: Store) -> None:
    store.resume("L", [0])
    store.apply_batch("L", 0, first=0, following=5, users={"u": Stored("L", 0, 4, SOME)})
    store.register_target("api", "127.0.0.1:9", ttl=5)
    store.put_window(10, b"w")

    async def read() -> tuple[object, ...]:
        client = AsyncStore(store.url, space=store.keys.space)
        got = (
            await client.evidence("u"),
            await client.evidence("nobody"),
            await client.wait_for(Token("L", 0, 4)),
            await client.wait_for(Token("L", 0, 5), timeout=0.05),
            await client.targets(),
            await client.windows(),
        )
        await client.close()
        return got

    expected = (Stored("L", 0, 4, SOME), None, True, False, {"api": "127.0.0.1:9"}, [(10, b"w")])
    assert asyncio.run(read()) == expected


def test_the_event_loop_hears_that_the_store_is_away() -> None:
    async def read() -> None:
        client = AsyncStore(f"valkey://127.0.0.1:{free_port()}/0", timeout_s=0.5)
        try:
            await client.evidence("u")
        finally:
            await client.close()

    with pytest.raises(StoreUnavailable, match="check that the store runs"):
        asyncio.run(read())


def test_the_event_loop_does_not_wait_for_a_store_that_is_silent_and_never_reads_an_answer_that_came_too_late() -> None:
    async def read() -> None:
        silent = True

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                while await reader.read(1000):
                    late = silent
                    if late:
                        await asyncio.sleep(0.6)
                    writer.write(b"$4\r\nlate\r\n" if late else b"$-1\r\n")

        server = await asyncio.start_server(serve, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        client = AsyncStore(f"valkey://127.0.0.1:{port}/0", timeout_s=0.1)
        client._client.connection_pool.connection_kwargs |= {"lib_name": None, "lib_version": None}
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            await client.evidence("u")
        assert time.monotonic() - begun < 0.5
        silent = False
        for _ in range(8):
            assert await client.evidence("u") is None
            await asyncio.sleep(0.1)
        await client.close()
        server.close()
        await server.wait_closed()

    asyncio.run(read())


def test_targets_expire_unless_they_are_renewed(store: Store) -> None:
    store.register_target("trainer", "127.0.0.1:1", ttl=0.5)
    store.register_target("api 1", "127.0.0.1:2", ttl=60)
    assert store.targets() == {"trainer": "127.0.0.1:1", "api 1": "127.0.0.1:2"}
    time.sleep(0.6)
    assert store.targets() == {"api 1": "127.0.0.1:2"}
    store.unregister_target("api 1", "127.0.0.1:2")
    assert store.targets() == {}


def test_a_window_written_again_replaces_itself_and_old_ones_go(store: Store) -> None:
    for start, value in ((0, b"a"), (60, b"b"), (60, b"c:d"), (120, b"")):
        store.put_window(start, value, keep=100)
    assert store.windows() == [(60, b"c:d"), (120, b"")]
    assert store.windows(61) == [(120, b"")]


def test_what_the_store_held_survives_its_restart(tmp_path) -> None:  # type: ignore[no-untyped-def]
    server = Valkey(tmp_path)
    server.start()
    store = Store(server.url)
    store.resume("L", [0])
    store.apply_batch("L", 0, first=0, following=5, users={"u": Stored("L", 0, 4, Evidence(updated=3))})
    server.stop()
    with pytest.raises(StoreUnavailable):
        store.evidence("u")
    server.start()
    assert store.evidence("u") == Stored("L", 0, 4, Evidence(updated=3))
    store.close()
    server.stop()
