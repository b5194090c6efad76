"""Who may do what, and proof that a slate is ours.

One bearer token per scope lies in a file of its own with mode 600, made at the first start like a notebook server's.
The slates that are served carry signed ids; feedback that names one is believed only for the user it was made for.
"""

import base64
import hashlib
import hmac
import os
import secrets
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from ranker.errors import AuthError, ConfigError, EventError

Scope = Literal["rank", "feedback", "ingest", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: ids that begin like this are ours and must carry a valid signature
SERVED = "plk_"
_KEYS = "signing"
_NONCE, _MAC = 9, 18
_HEAD = struct.Struct(f">{_NONCE}sQ{_MAC}s")


class Tokens:
    """The token of each scope, and the check of a request against them. `admin` implies every scope.

    Example:
        >>> tokens = Tokens({"rank": "r", "feedback": "f", "ingest": "i", "metrics": "m", "admin": "a"})
        >>> sorted(tokens.check("Bearer f", "feedback", "ingest"))
        ['feedback']
        >>> tokens.check("Bearer a", "rank") == frozenset(SCOPES)
        True
    """

    def __init__(self, tokens: Mapping[Scope, str]) -> None:
        self._tokens = dict(tokens)
        self._digests = {scope: _digest(token) for scope, token in tokens.items()}

    @classmethod
    def open(cls, folder: Path) -> "Tokens":
        """The tokens of this folder; what is missing is made.

        Raises:
            ConfigError: the folder cannot be written, or another user may read a token.
        """
        return cls({scope: _kept(folder / f"{scope}.token", lambda: secrets.token_urlsafe(24)) for scope in SCOPES})

    def __getitem__(self, scope: Scope) -> str:
        return self._tokens[scope]

    def check(self, authorization: str | None, *needed: Scope) -> frozenset[Scope]:
        """The scopes that an Authorization header grants, of which one of `needed` must be one.

        Every token is compared, in constant time each, so that the answer's timing tells nothing.

        Raises:
            AuthError: 401 without a known token, 403 where its scope is another.
        """
        kind, _, token = (authorization or "").partition(" ")
        remedy = "send Authorization: Bearer with the token of the scope; `plurank up` shows where it is kept"
        if kind.lower() != "bearer" or not token:
            raise AuthError("Authorization", None if authorization is None else kind, remedy)
        given = _digest(token.strip())
        granted = {scope for scope, digest in self._digests.items() if hmac.compare_digest(digest, given)}
        if not granted:
            raise AuthError("token", "an unknown token", remedy)
        if "admin" in granted:
            return frozenset(SCOPES)
        if not granted.intersection(needed):
            error = AuthError("token", ", ".join(sorted(granted)), f"this needs the scope {' or '.join(needed)}")
            error.status = 403
            raise error
        return frozenset(granted)


class Signer:
    """Makes and checks the ids of served slates with keys that all replicas share.

    An id is `plk_` + base64url(nonce, time, mac, version); the mac is keyed BLAKE2b over the rest and the user, 144
    bits. The version travels in the id because feedback may come after that version is gone. Two keys are valid at
    a time: the newest signs, both verify, so keys rotate without refusing slates that are on a screen.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _KEYS
        self._keys: list[bytes] = []
        self._stamp = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the keys again if their file has changed."""
        text = _kept(self._path, lambda: secrets.token_hex(32))
        stamp = self._path.stat().st_mtime_ns
        if stamp != self._stamp:
            self._keys = [bytes.fromhex(line) for line in text.split()]
            self._stamp = stamp

    def rotate(self) -> None:
        """Sign with a new key from now on; the key before it stays valid until the next rotation."""
        keys = [secrets.token_bytes(32), *self._keys[:1]]
        beside = self._path.with_suffix(f".{os.getpid()}")
        _write(beside, "\n".join(key.hex() for key in keys))
        beside.replace(self._path)
        self.refresh()

    def sign(self, user: str, version: str, time_ms: int | None = None) -> str:
        """A fresh ranking id for this user and version."""
        nonce, when = secrets.token_bytes(_NONCE), int(time.time() * 1000) if time_ms is None else time_ms
        mac = _mac(self._keys[0], nonce, when, user, version)
        raw = _HEAD.pack(nonce, when, mac) + version.encode()
        return SERVED + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def verify(self, ranking: str, user: str) -> str:
        """The version that served this ranking to this user.

        Raises:
            EventError: forged, damaged, or made for somebody else.
        """
        try:
            text = ranking.removeprefix(SERVED)
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            nonce, when, mac = _HEAD.unpack_from(raw)
            version = raw[_HEAD.size :].decode()
        except (ValueError, struct.error):
            raise EventError("ranking", ranking, "send the ranking id as /v1/rank gave it") from None
        if not self._valid(nonce, when, user, version, mac):
            self.refresh()  # another replica may have signed with a key that is newer than ours
            if not self._valid(nonce, when, user, version, mac):
                raise EventError(
                    "ranking", ranking, "its signature is not ours for this user; send id and user as served"
                )
        return version

    def _valid(self, nonce: bytes, when: int, user: str, version: str, mac: bytes) -> bool:
        return any(hmac.compare_digest(mac, _mac(key, nonce, when, user, version)) for key in self._keys)


def _mac(key: bytes, nonce: bytes, when: int, user: str, version: str) -> bytes:
    parts = [nonce, when.to_bytes(8, "big"), user.encode("utf-8", "surrogatepass"), version.encode()]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.blake2b(message, key=key, digest_size=_MAC).digest()


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32).digest()


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The secret in this file, made first where there is none; processes that start together agree on one."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
            _write(beside, make())
            try:
                os.link(beside, path)  # fails where another process was first
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        mode = path.stat().st_mode & 0o777
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), str(error), "make the token folder readable and writable for this user") from None
    if mode & 0o077:
        raise ConfigError(
            str(path), oct(mode), "others can read this secret; chmod 600 it, or delete it to have a new one"
        )
    if not text:
        raise ConfigError(str(path), text, "the secret is empty; delete the file to have a new one")
    return text


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
