"""The other side of the API: what `plurank rank`, `plurank models` and the audience call it with.

One connection is kept open; a connection that the service closed meanwhile is opened again once.
"""

import http.client
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ranker.errors import NotFound, RequestError


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, the decoded JSON body (text where it is none), and the time it took in ms."""

    status: int
    body: Any
    milliseconds: float


class Client:
    """A connection to one service.

    Args:
        url: its address, such as http://127.0.0.1:8080.
        token: the bearer token to send.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError("url", url, "name the service as http://host:port")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url = url
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, method: str, path: str, body: Any = None) -> Answer:
        """The answer as it is, whatever its status.

        Raises:
            NotFound: nothing answers at the address.
        """
        raw = None if body is None else msgspec.json.encode(body)
        begun = time.perf_counter()
        for last in (False, True):
            try:
                self._connection.request(method, path, raw, self._headers)
                response = self._connection.getresponse()
                text = response.read()
                break
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                gone = isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError)
                if last or not gone:
                    reason = str(error) or type(error).__name__
                    raise NotFound("service", self.url, f"start it with `plurank up` ({reason})") from None
        taken = (time.perf_counter() - begun) * 1000
        try:
            return Answer(response.status, msgspec.json.decode(text) if text else None, taken)
        except msgspec.DecodeError:
            return Answer(response.status, text.decode("utf-8", "replace"), taken)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The body of a good answer.

        Raises:
            RequestError: the service refused; its words are kept.
            NotFound: nothing answers at the address.
        """
        answer = self.send(method, path, body)
        if 200 <= answer.status < 300:
            return answer.body
        problem = answer.body if isinstance(answer.body, dict) else {}
        detail = str(problem.get("detail") or problem.get("remedy") or answer.body or "no reason given")
        error = RequestError(f"{method} {path}", answer.status, detail)
        error.problem = "is the service's answer"
        raise error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
