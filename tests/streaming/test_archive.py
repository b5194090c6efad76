import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ranker import datasets
from ranker.events import Interaction, decode
from streaming import log
from streaming.archive import UNDRAINED, Keeper, restore
from streaming.log import SEGMENT_BITS, Address, Admin, Reader, Writer

pytestmark = pytest.mark.integration
GROUPS = ("profiles", "trainer")


def click(number: int) -> Interaction:
    return Interaction(id=f"e{number}", timestamp=number, user=f"u{number % 7}", item="i", type="t")


def write(writer: Writer, numbers: range) -> list[tuple[int, int]]:
    return [future.result(10) for future in [writer.append(click(number)) for number in numbers]]


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"


def test_a_log_is_rolled_and_its_drained_segments_go_into_the_archive(address: Address, tmp_path: Path) -> None:
    writer = Writer(address)
    readers = [Reader(address, group=group) for group in GROUPS]
    keeper = Keeper(address, tmp_path, GROUPS, batches=40, announce_s=1.5)
    got: list[list[str]] = [[], []]
    sent = 0

    def step() -> int:
        nonlocal sent
        write(writer, range(sent, sent + 50))
        sent += 50
        for reader, ids in zip(readers, got, strict=True):
            for record in reader.poll(timeout=0.05):
                ids.append(decode(record.value).id)
            reader.commit()
        return keeper.tick().segments

    until(lambda: step() and max(readers[0].positions().values()) >> SEGMENT_BITS >= 2)
    with Admin(address) as admin:
        until(lambda: step() and [s.number for s in admin.layout().segments][1] > 1)
        assert admin.layout().segments[0].number == 0
    for reader, ids in zip(readers, got, strict=True):
        until(
            lambda reader=reader, ids=ids: (  # type: ignore[misc]
                ids.extend(decode(record.value).id for record in reader.poll(timeout=0.3)) or len(ids) >= sent
            )
        )
        assert sorted(ids) == sorted(f"e{n}" for n in range(sent))
        reader.commit()
        reader.close()
    assert keeper.finish() == 0
    archived = [event.id for event in datasets.read(sorted(tmp_path.glob("events-*.jsonl*")))]
    assert sorted(archived) == sorted(f"e{n}" for n in range(sent))
    assert list(tmp_path.glob("*.gz"))
    writer.close()


def test_what_a_group_lacks_is_read_again_from_the_next_log_and_only_by_who_lacks_it(
    address: Address, tmp_path: Path
) -> None:
    writer, keeper = Writer(address), Keeper(address, tmp_path, GROUPS)
    first, second = Reader(address, group=GROUPS[0]), Reader(address, group=GROUPS[1])
    write(writer, range(40))
    writer.put(b"u", b"no event").result(10)
    until(lambda: len(first.poll(timeout=0.3)) == 0 and sum(first.positions().values()) == 41)
    half = {partition: offset // 2 for partition, offset in first.positions().items()}
    first.commit()
    second.commit(half)
    left = 41 - sum(half.values())
    assert keeper.tick().undrained == left
    assert keeper.finish() == left
    had = {first.log: first.positions()}, {first.log: half}
    for end in (writer, first, second):
        end.close()

    later = Address(brokers=address.brokers, topic=address.topic + "-later", replication=1, segmented=True)
    log.create(later)
    assert restore(later, tmp_path) == left
    assert restore(later, tmp_path) == 0
    whole, part = (Reader(later, covered=covered) for covered in had)
    assert whole.poll(timeout=0.5) == []
    found: list[bytes] = []
    until(lambda: found.extend(record.value for record in part.poll(timeout=0.3)) or len(found) == left)  # type: ignore[func-returns-value]
    assert b"no event" in found
    assert len(set(found)) == left
    whole.close()
    part.close()

    # carried over twice, it still remembers where it lay first
    again = Keeper(later, tmp_path, GROUPS)
    assert again.finish() == left
    assert (tmp_path / UNDRAINED).exists()
    assert all(line.count(b".") >= 4 for line in (tmp_path / UNDRAINED).read_bytes().splitlines())
