"""A receiver on a real socket, as a customer would write one with the stock client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import OpenAI
from openai.types.webhooks import UnwrapWebhookEvent


@dataclass
class Received:
    """One request."""

    headers: dict[str, str]
    body: bytes

    def unwrap(self, secret: str) -> UnwrapWebhookEvent:
        """Check the signature and read the event; raises what the client raises."""
        client = OpenAI(api_key="unused", webhook_secret=secret)
        return client.webhooks.unwrap(self.body, self.headers)


@dataclass
class Receiver:
    """What came, and what is answered: a status, or a function that may do worse."""

    url: str = ""
    answer: int | Callable[[BaseHTTPRequestHandler], None] = 200
    received: list[Received] = field(default_factory=list)


@contextmanager
def receiving(answer: int | Callable[[BaseHTTPRequestHandler], None] = 200) -> Iterator[Receiver]:
    """Listen on a free port of the loopback address."""
    receiver = Receiver(answer=answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(headers, body))
            if callable(receiver.answer):
                receiver.answer(self)
                return
            self.send_response(receiver.answer)
            self.send_header("location", receiver.url + "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
