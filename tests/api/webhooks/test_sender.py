"""One message to a real receiver: what arrives, and every way in which it does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.webhooks import sender as sender_module
from api.webhooks.sender import Message, NotDelivered, Sender
from api.webhooks.signing import new_secret
from models.base import utc_now
from tests.api.webhooks.receiver import receiving

MESSAGE = Message("evt_1", "fine_tuning.job.succeeded", utc_now(), {"id": "ftjob-1", "kind": "x"})
SECRET = new_secret()


def send(url: str, *, allow_private: bool = True, secrets: tuple[str, ...] = (SECRET,)) -> int:
    async def once() -> int:
        async with Sender(allow_private=allow_private) as sender:
            return await sender.send(url, MESSAGE, secrets)

    return asyncio.run(once())


def reason(url: str, *, allow_private: bool = True) -> str:
    with pytest.raises(NotDelivered) as caught:
        send(url, allow_private=allow_private)
    assert str(caught.value).endswith(".")
    return caught.value.reason


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "TIMEOUT_SECONDS", 0.3)


def test_the_client_unwraps_what_arrives() -> None:
    with receiving() as receiver:
        assert send(receiver.url) == 200
    (received,) = receiver.received
    event = received.unwrap(SECRET)
    assert (event.id, event.type, event.data.id) == ("evt_1", MESSAGE.type, "ftjob-1")
    assert event.data.kind == "x"  # type: ignore[union-attr]
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == receiver.url.split("/")[2]
    assert received.headers["user-agent"].startswith("Titer-Webhooks/")
    assert "cookie" not in received.headers


@pytest.mark.parametrize("status", [204, 302, 307, 404, 500])
def test_every_status_is_given_back_and_no_redirect_followed(status: int) -> None:
    with receiving(status) as receiver:
        assert send(receiver.url) == status
    assert len(receiver.received) == 1


def test_a_private_address_is_refused_before_anything_is_connected() -> None:
    with receiving() as receiver:
        assert reason(receiver.url, allow_private=False) == "address_refused"
        port = receiver.url.split(":")[2]
        assert reason(f"https://localhost:{port}", allow_private=False) == "address_refused"
    assert receiver.received == []


def test_a_name_is_resolved_once_so_that_rebinding_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = socket.getaddrinfo, []

    def getaddrinfo(host: object, *rest: object, **more: object) -> object:
        if host == "rebinding.test":
            asked.append(host)
            assert len(asked) == 1
            return real("127.0.0.1", *rest, **more)  # type: ignore[arg-type]
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with receiving() as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
        assert send(f"http://rebinding.test:{port}/hook") == 200
    assert receiver.received[0].headers["host"] == f"rebinding.test:{port}"
    assert asked == ["rebinding.test"]


def test_nobody_listens() -> None:
    assert reason("http://127.0.0.1:1/") == "connection_failed"


def test_a_connection_that_breaks() -> None:
    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    with receiving(hang_up) as receiver:
        assert reason(receiver.url) == "connection_broken"


@pytest.mark.usefixtures("_impatient")
def test_a_receiver_that_answers_drop_by_drop_costs_no_more_than_the_time_limit() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(20):
                handler.wfile.write(b"x: y\r\n")
                time.sleep(0.1)

    with receiving(drip) as receiver:
        began = time.monotonic()
        assert reason(receiver.url) == "timeout"
        assert time.monotonic() - began < 1.5


def test_an_endless_body_is_not_read() -> None:
    ended = threading.Event()

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65_536)
        except OSError:
            ended.set()

    with receiving(flood) as receiver:
        assert send(receiver.url) == 200
        assert ended.wait(5)


class TestCertificates:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """One for the name `localhost`, that nobody vouches for."""
        path = tmp_path / "certificate.pem"
        path.write_bytes(_self_signed("localhost"))
        return path

    @pytest.fixture
    def port(self, certificate: Path) -> Iterator[int]:
        """A receiver that shows it."""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = HTTPServer(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.handle_error = lambda *_: None  # type: ignore[method-assign, misc]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        server.server_close()
        thread.join()

    def test_one_that_nobody_vouches_for_is_refused(self, port: int) -> None:
        assert reason(f"https://localhost:{port}/") == "tls_failed"

    def test_it_is_checked_for_the_name_though_the_address_is_connected_to(
        self, port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert send(f"https://localhost:{port}/") == 202
        assert reason(f"https://127.0.0.1:{port}/") == "tls_failed"


def _self_signed(host: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
