import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from ranker.errors import NotFound, RequestError
from services.client import Client


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/close":  # hangs up after this answer without saying so
            self.close_connection = True
        if self.path == "/refuse":
            self._say(422, {"detail": "limit: 0 is not usable; ask for 1 or more items"})
        else:
            self._say(200, {"token": self.headers["Authorization"], "body": msgspec.json.decode(body)})

    def do_GET(self) -> None:
        self._say(200, None if self.path == "/empty" else "text")

    def _say(self, status: int, found: object) -> None:
        raw = b"" if found is None else found.encode() if isinstance(found, str) else msgspec.json.encode(found)
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_token_and_the_body_arrive(url: str) -> None:
    client = Client(url, "secret")
    assert client.call("POST", "/v1/rank", {"user": "u"}) == {"token": "Bearer secret", "body": {"user": "u"}}
    client.close()


def test_a_connection_that_the_service_closed_is_opened_again(url: str) -> None:
    client = Client(url, "secret")
    client.call("POST", "/close", {})
    assert client.call("POST", "/v1/rank", {"n": 2})["body"] == {"n": 2}
    client.close()


def test_a_refusal_keeps_the_words_of_the_service(url: str) -> None:
    client = Client(url)
    with pytest.raises(RequestError, match="POST /refuse: 422 is the service's answer; limit: 0 is not usable"):
        client.call("POST", "/refuse", {})
    client.close()


def test_answers_that_are_no_json_are_kept_as_text(url: str) -> None:
    client = Client(url)
    assert client.send("GET", "/text").body == "text"
    assert client.send("GET", "/empty").body is None
    client.close()


def test_nothing_at_the_address_says_how_to_start_it() -> None:
    with pytest.raises(NotFound, match="start it with `plurank up`"):
        Client("http://127.0.0.1:1").send("GET", "/readyz")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="name the service as http://host:port"):
        Client(url)
