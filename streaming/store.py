"""The evidence store, and the only door to Valkey: views of the log that requests read.

Everything lies in one hash slot (`{space}`), so that one script can change a whole batch: users' evidence, the
catalogue and the partition's next offset move together or not at all. A batch names the offset it starts from;
where the store is elsewhere (another process was faster, or the store lost its memory) nothing is applied.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import valkey
import valkey.asyncio
from msgspec import Struct
from valkey.exceptions import ValkeyError

from ranker.catalogue import Item
from ranker.errors import StoreUnavailable
from ranker.events import Value
from ranker.evidence import EMPTY, Evidence
from streaming.log import Token


class Stored(Struct, frozen=True, array_like=True):
    """A user's record: the evidence and the position of the last record folded into it.

    `forgotten` is the time (ms) of the user's last forget: older events of hers are passed over for good.
    """

    log: str = ""
    partition: int = -1
    offset: int = -1
    evidence: Evidence = EMPTY
    forgotten: int = -1


class Changes(NamedTuple):
    """Catalogue items changed since a mark, and the mark to ask from the next time.

    `reset` says that the store was emptied in between: what is not among the items is no longer known.
    """

    mark: str
    items: list[Item]
    reset: bool


class Applied(NamedTuple):
    """Whether a batch was applied, and the partition's next offset in the store (-1: it knows nothing of the log)."""

    done: bool
    offset: int


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Stored).decode
_unpack_fields = msgspec.msgpack.Decoder(dict[str, Value]).decode

#: a read of many windows may take so many times as long as another
LARGE = 10.0

# KEYS: resume, items, seen, changes, epoch, then users. ARGV: partition, first, next, epoch to set where there is
# none, number of users, of items, of seen; then user records; item id, fields, ...; item id, time, ...
# Returns {applied, the partition's offset or -1 where the store knows none}.
_APPLY = """
local at = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or -1)
if at ~= tonumber(ARGV[2]) then return {0, at} end
redis.call('SETNX', KEYS[5], ARGV[4])
local arg = 8
for user = 1, tonumber(ARGV[5]) do
  redis.call('SET', KEYS[5 + user], ARGV[arg])
  arg = arg + 1
end
local changed = {}
for _ = 1, tonumber(ARGV[6]) do
  if redis.call('HGET', KEYS[2], ARGV[arg]) ~= ARGV[arg + 1] then
    redis.call('HSET', KEYS[2], ARGV[arg], ARGV[arg + 1])
    changed[#changed + 1] = ARGV[arg]
  end
  arg = arg + 2
end
for _ = 1, tonumber(ARGV[7]) do
  local before = redis.call('HGET', KEYS[3], ARGV[arg])
  if not before or tonumber(before) > tonumber(ARGV[arg + 1]) then
    redis.call('HSET', KEYS[3], ARGV[arg], ARGV[arg + 1])
    changed[#changed + 1] = ARGV[arg]
  end
  arg = arg + 2
end
if #changed > 0 then
  local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')
  local count = tonumber(last[2] or 0)
  for _, item in ipairs(changed) do
    count = count + 1
    redis.call('ZADD', KEYS[4], count, item)
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {1, tonumber(ARGV[3])}
"""


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (ValkeyError, OSError, TimeoutError) as error:
        where = url.rsplit("@", 1)[-1]  # never a password
        remedy = "check that the store runs and that its address and password are right"
        raise StoreUnavailable(f"store at {where}", f"{type(error).__name__}: {error}", remedy) from error


class _Keys:
    def __init__(self, space: str) -> None:
        self.space, self.prefix = space, f"{{{space}}}:"
        self.items, self.seen = self.prefix + "items", self.prefix + "seen"
        self.changes, self.epoch = self.prefix + "changes", self.prefix + "epoch"
        self.targets, self.windows = self.prefix + "targets", self.prefix + "windows"

    def resume(self, log: str) -> str:
        return f"{self.prefix}resume:{log}"

    def user(self, user: str) -> str:
        return f"{self.prefix}user:{user}"


class Store:
    """The store for loops: one thread, blocking.

    Args:
        url: valkey://, valkeys:// (TLS), redis:// or rediss://, with password and database as usual.
        space: prefix of all keys; also the hash tag that keeps them in one slot of a cluster.
    """

    def __init__(self, url: str, *, space: str = "plurank", timeout_s: float = 5.0) -> None:
        self.url = url
        self.keys = _Keys(space)
        with _translated(url):
            self._client: Any = valkey.Valkey.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._apply = self._client.register_script(_APPLY)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def ping(self) -> bool:
        """Whether it answers and takes writes (it may still be loading)."""
        try:
            return bool(self._client.ping())
        except (ValkeyError, OSError):
            return False

    def evidence(self, user: str) -> Stored | None:
        """The user's record, None where nothing is known.

        Raises:
            StoreUnavailable: the store is away.
        """
        return self.evidences([user])[0]

    def evidences(self, users: Sequence[str]) -> list[Stored | None]:
        """The records of many users in one round trip."""
        if not users:
            return []
        with _translated(self.url):
            raws = self._client.mget([self.keys.user(user) for user in users])
        return [None if raw is None else _unpack(raw) for raw in raws]

    def resume(self, log: str, partitions: Sequence[int]) -> dict[int, int]:
        """The next offset of each partition of this log; partitions never seen are set to 0.

        Raises:
            StoreUnavailable: the store is away.
        """
        with _translated(self.url):
            pipe = self._client.pipeline(transaction=True)
            for partition in partitions:
                pipe.hsetnx(self.keys.resume(log), str(partition), "0")
            pipe.hgetall(self.keys.resume(log))
            found = pipe.execute()[-1]
        return {int(partition): int(offset) for partition, offset in found.items()}

    def covered(self) -> dict[str, dict[int, int]]:
        """How far every log was read that this store has seen, by log and partition."""
        with _translated(self.url):
            names = [bytes(name).decode() for name in self._client.scan_iter(self.keys.resume("*"), count=1000)]
            start = len(self.keys.resume(""))
            return {name[start:]: {int(p): int(o) for p, o in self._client.hgetall(name).items()} for name in names}

    def apply_batch(
        self,
        log: str,
        partition: int,
        *,
        first: int,
        following: int,
        users: Mapping[str, Stored],
        items: Mapping[str, Mapping[str, Value]] | None = None,
        seen: Mapping[str, int] | None = None,
    ) -> Applied:
        """Apply what the records [first, following) of a partition changed, all of it or nothing.

        Args:
            items: all fields of the items that changed.
            seen: time each item was seen; the earliest is kept.

        Returns:
            Not done where the store is not at `first`: another process was faster, or the store was emptied.

        Raises:
            StoreUnavailable: the store is away; whether it was applied shows in `resume`.
        """
        keys, items, seen = self.keys, items or {}, seen or {}
        epoch = f"{time.time_ns():x}"
        arguments: list[Any] = [partition, first, following, epoch, len(users), len(items), len(seen)]
        arguments += map(_pack, users.values())
        for item, fields in items.items():
            arguments += (item, _pack(fields))
        for item, when in seen.items():
            arguments += (item, when)
        names = [keys.resume(log), keys.items, keys.seen, keys.changes, keys.epoch, *map(keys.user, users)]
        with _translated(self.url):
            done, offset = self._apply(keys=names, args=arguments)
        return Applied(bool(done), int(offset))

    def mark(self) -> str:
        """The catalogue's mark: changes when any item does. Cheap enough to poll each second."""
        with _translated(self.url):
            pipe = self._client.pipeline(transaction=True)
            pipe.get(self.keys.epoch)
            pipe.zrange(self.keys.changes, -1, -1, withscores=True)
            epoch, last = pipe.execute()
        return f"{(epoch or b'').decode()}:{int(last[0][1]) if last else 0}"

    def catalogue_changes(self, since: str = "") -> Changes:
        """Items that changed since the mark, all of them at first and when the store was emptied meanwhile.

        Raises:
            StoreUnavailable: the store is away.
        """
        mark = self.mark()
        if mark == since:
            return Changes(mark, [], False)
        same = since.rpartition(":")[0] == mark.rpartition(":")[0]
        low = int(since.rpartition(":")[2]) if same and since else 0
        items: list[Item] = []
        with _translated(self.url):
            names = self._client.zrangebyscore(self.keys.changes, low + 1, int(mark.rpartition(":")[2]))
            for start in range(0, len(names), 5000):
                part = names[start : start + 5000]
                pipe = self._client.pipeline(transaction=True)
                pipe.hmget(self.keys.items, part)
                pipe.hmget(self.keys.seen, part)
                for name, fields, when in zip(part, *pipe.execute(), strict=True):
                    items.append(Item(name.decode(), _unpack_fields(fields) if fields else {}, int(when or 0)))
        return Changes(mark, items, bool(since) and not same)

    def items(self, ids: Sequence[str]) -> dict[str, Item]:
        """The items of these ids that the catalogue holds."""
        if not ids:
            return {}
        with _translated(self.url):
            pipe = self._client.pipeline(transaction=True)
            pipe.hmget(self.keys.items, list(ids))
            pipe.hmget(self.keys.seen, list(ids))
            fields, seen = pipe.execute()
        return {
            item: Item(item, _unpack_fields(raw) if raw else {}, int(when))
            for item, raw, when in zip(ids, fields, seen, strict=True)
            if when is not None
        }

    def wait_for(self, token: Token, timeout: float = 0.5) -> bool:
        """Wait until the store holds what was written at the token; False when the time is up."""
        deadline, pause = time.monotonic() + timeout, 0.002
        while not self.holds(token):
            if time.monotonic() + pause > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return True

    def holds(self, token: Token) -> bool:
        """Whether the store holds what was written at the token."""
        with _translated(self.url):
            raw = self._client.hget(self.keys.resume(token.log), str(token.partition))
        return raw is not None and int(raw) > token.offset

    def register_target(self, process: str, address: str, *, ttl: float = 15.0) -> None:
        """Announce where a process serves its metrics; repeat before `ttl` seconds pass."""
        with _translated(self.url):
            pipe = self._client.pipeline(transaction=True)
            pipe.zremrangebyscore(self.keys.targets, "-inf", time.time())
            pipe.zadd(self.keys.targets, {f"{process} {address}": time.time() + ttl})
            pipe.execute()

    def unregister_target(self, process: str, address: str) -> None:
        """Withdraw an announcement."""
        with _translated(self.url):
            self._client.zrem(self.keys.targets, f"{process} {address}")

    def targets(self) -> dict[str, str]:
        """Address of each process that announced itself and did not expire."""
        with _translated(self.url):
            members = self._client.zrangebyscore(self.keys.targets, time.time(), "+inf")
        return dict(member.decode().rsplit(" ", 1) for member in members)

    def put_window(self, start: int, value: bytes, *, name: str = "fairness", keep: int = 24 * 3600 * 1000) -> None:
        """Store the window that begins at `start` (ms); those older than `keep` ms before it are dropped."""
        key = f"{self.keys.windows}:{name}"
        with _translated(self.url):
            pipe = self._client.pipeline(transaction=True)
            pipe.zremrangebyscore(key, start, start)
            pipe.zadd(key, {b"%d:" % start + value: start})
            pipe.zremrangebyscore(key, "-inf", start - keep)
            pipe.execute()

    def windows(self, since: int = 0, *, name: str = "fairness") -> list[tuple[int, bytes]]:
        """Windows that begin at `since` (ms) or later, oldest first."""
        with _translated(self.url):
            members = self._client.zrangebyscore(f"{self.keys.windows}:{name}", since, "+inf")
        return [(int(start), value) for start, _, value in (member.partition(b":") for member in members)]

    def clear(self) -> int:
        """Delete everything of this space; returns the number of keys."""
        with _translated(self.url):
            names = list(self._client.scan_iter(self.keys.prefix + "*", count=1000))
            return int(self._client.unlink(*names)) if names else 0


class AsyncStore:
    """The store for the request path: reads on the event loop."""

    def __init__(self, url: str, *, space: str = "plurank", timeout_s: float = 1.0) -> None:
        self.url = url
        self.keys = _Keys(space)
        self._timeout_s = timeout_s
        with _translated(url):
            # no time limit of the socket's: the client would make a task of each write for it
            self._client: Any = valkey.asyncio.Valkey.from_url(url, socket_timeout=None)

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()

    async def evidence(self, user: str) -> Stored | None:
        """The user's record, None where nothing is known.

        Raises:
            StoreUnavailable: the store is away.
        """
        raw = await self._asked(self._client.get(self.keys.user(user)))
        return None if raw is None else _unpack(raw)

    async def wait_for(self, token: Token, timeout: float = 0.5) -> bool:
        """Wait until the store holds what was written at the token; False when the time is up."""
        deadline, pause = time.monotonic() + timeout, 0.002
        while True:
            raw = await self._asked(self._client.hget(self.keys.resume(token.log), str(token.partition)))
            if raw is not None and int(raw) > token.offset:
                return True
            if time.monotonic() + pause > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.02)

    async def targets(self) -> dict[str, str]:
        """Address of each process that announced itself and did not expire."""
        members = await self._asked(self._client.zrangebyscore(self.keys.targets, time.time(), "+inf"))
        return dict(member.decode().rsplit(" ", 1) for member in members)

    async def windows(self, since: int = 0, *, name: str = "fairness") -> list[tuple[int, bytes]]:
        """Windows that begin at `since` (ms) or later, oldest first."""
        asked = self._client.zrangebyscore(f"{self.keys.windows}:{name}", since, "+inf")
        members = await self._asked(asked, patience=LARGE)
        return [(int(start), value) for start, _, value in (member.partition(b":") for member in members)]

    async def _asked(self, answer: Awaitable[Any], patience: float = 1.0) -> Any:
        with _translated(self.url):
            async with asyncio.timeout(patience * self._timeout_s):
                return await answer
