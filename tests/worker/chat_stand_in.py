"""A chat endpoint on this machine whose verdict is a function of the two answers that it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from models.endpoint import EndpointSpec

Reply = Callable[[str, str], str]


class StandIn(ThreadingHTTPServer):
    """A chat endpoint whose verdict is a function of the two answers that it is shown."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.failures_left = 0
        self.status, self.body = 200, None
        self.requests: list[dict[str, object]] = []
        self.keys: list[str | None] = []

    @property
    def spec(self) -> EndpointSpec:
        return EndpointSpec(
            base_url=f"http://127.0.0.1:{self.server_address[1]}/v1", model="stand-in", tries=3
        )


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("authorization"))
        assert self.path == "/v1/chat/completions"
        status, body = self.server.status, self.server.body
        if self.server.failures_left > 0:
            self.server.failures_left -= 1
            status = 503
        if body is None:
            question = request["messages"][-1]["content"]
            first, second = (
                re.search(rf"<answer-{letter}>\n(.*?)\n</answer-{letter}>", question, re.DOTALL)
                for letter in "AB"
            )
            reply = self.server.reply(first.group(1), second.group(1))
            body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def judge(reply: Reply) -> Iterator[StandIn]:
    server = StandIn(reply)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def longer(first: str, second: str) -> str:
    word = "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"The other one is short.\nVERDICT: {word}"
