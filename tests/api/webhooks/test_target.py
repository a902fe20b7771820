"""Where webhooks may not go, however it is written."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from api.webhooks.target import (
    InvalidWebhookUrl,
    NameUnknown,
    TargetRefused,
    check_url,
    may_be_sent_to,
    resolve,
)

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.1.2.3",
    "192.0.2.1",
    "198.18.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "fc00::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::10.0.0.1",
    "2002:7f00:1::",
]
NEVER = [
    "169.254.169.254",
    "fe80::1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::",
    "224.0.0.1",
    "ff02::1",
    "0.0.0.0",
    "::",
]


class TestAddresses:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_public_ones_are_sent_to(self, address: str) -> None:
        assert may_be_sent_to(ip_address(address), allow_private=False)

    @pytest.mark.parametrize("address", PRIVATE)
    def test_private_ones_only_in_development(self, address: str) -> None:
        assert not may_be_sent_to(ip_address(address), allow_private=False)
        assert may_be_sent_to(ip_address(address), allow_private=True)

    @pytest.mark.parametrize("address", NEVER)
    def test_some_never(self, address: str) -> None:
        assert not may_be_sent_to(ip_address(address), allow_private=False)
        assert not may_be_sent_to(ip_address(address), allow_private=True)


class TestCheckUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com",
            "https://example.com:8443/a?b=c",
            "https://8.8.8.8/",
            "https://xn--bcher-kva.de/",
        ],
    )
    def test_good_ones(self, url: str) -> None:
        check_url(url, allow_private=False)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com/hook",
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "https://",
            "https:///path",
            "https://user@example.com/",
            "https://user:secret@example.com/",
            "https://:@example.com/",
            "https://example.com/#part",
            "https://example.com:0/",
            "https://example.com:99999/",
            "https://example.com:x/",
            "https://[::1/",
            "https://exa mple.com/",
            "https://example.com/\r\nx: y",
            "https://example.com\\@10.0.0.1/",
            "https://bücher.de/",
            "https://example.com/" + "x" * 2_048,
            "https://" + "x" * 254 + "/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[fe80::1%25eth0]/",
            "https://169.254.169.254/latest/meta-data",
        ],
    )
    def test_bad_ones(self, url: str) -> None:
        with pytest.raises(InvalidWebhookUrl) as caught:
            check_url(url, allow_private=False)
        assert caught.value.param == "url"

    def test_development_lets_http_and_loopback_pass_but_no_metadata_service(self) -> None:
        check_url("http://127.0.0.1:9000/hook", allow_private=True)
        with pytest.raises(InvalidWebhookUrl):
            check_url("http://169.254.169.254/", allow_private=True)


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Make every name have these addresses; give the names that are asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        asked.append(host)
        if not addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


class TestResolve:
    def test_the_checked_address_is_what_is_connected_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = answer_with(monkeypatch, "8.8.8.8", "8.8.4.4")
        target = asyncio.run(resolve("https://Example.com:8443/a?b=c", allow_private=False))
        assert target.url == "https://8.8.8.8:8443/a?b=c"
        assert (target.host, target.host_header) == ("example.com", "example.com:8443")
        assert asked == ["example.com"]

    def test_an_ipv6_address_is_put_in_brackets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer_with(monkeypatch, "2606:4700:4700::1111")
        target = asyncio.run(resolve("https://example.com", allow_private=False))
        assert target.url == "https://[2606:4700:4700::1111]:443/"
        assert target.host_header == "example.com"

    def test_one_private_address_among_others_spoils_a_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_with(monkeypatch, "8.8.8.8", "10.0.0.1")
        with pytest.raises(TargetRefused):
            asyncio.run(resolve("https://example.com/", allow_private=False))

    @pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
    def test_other_spellings_of_loopback_are_seen_through(self, host: str) -> None:
        # The real resolver reads them.
        with pytest.raises((TargetRefused, NameUnknown)):
            asyncio.run(resolve(f"https://{host}/", allow_private=False))

    def test_a_name_that_is_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer_with(monkeypatch)
        with pytest.raises(NameUnknown):
            asyncio.run(resolve("https://example.com/", allow_private=False))
