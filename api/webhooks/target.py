"""Where webhooks may go: a customer's address must not lead into the service's own network.

A name is resolved once, every address it has is checked, and one of those is what is connected to. So a name
that answers differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from models.errors import DomainError

MAX_URL_CHARACTERS = 2_048
MAX_HOST_CHARACTERS = 253
PORTS = {"https": 443, "http": 80}
#: Blocks of IPv6 whose last 32 bits are an address of IPv4, which is where the packets end up: NAT64, and the
#: "compatible" form of old.
HOLD_IPV4 = tuple(ipaddress.ip_network(block) for block in ("64:ff9b::/96", "::/96"))
#: NAT64 within one network; the standard library takes it for public.
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class InvalidWebhookUrl(DomainError):
    """The address cannot be a webhook's."""

    code = "invalid_webhook_url"


class TargetRefused(Exception):
    """The name leads to an address that webhooks are not sent to."""


class NameUnknown(Exception):
    """The name has no address at the moment."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address that was checked, and what is asked of it."""

    scheme: str
    #: As in the URL, in ASCII: for the certificate's check and the Host header.
    host: str
    port: int
    path: str
    address: str

    @property
    def host_header(self) -> str:
        """The name, with the port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL with the checked address in place of the name."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Refuse what is wrong with a URL by itself, before any name is resolved.

    Raises:
        InvalidWebhookUrl: with the reason.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise InvalidWebhookUrl("This is not a URL.", param="url") from None
    if (
        len(url) > MAX_URL_CHARACTERS
        or not url.isascii()
        or any(c <= " " or c == "\\" for c in url)
    ):
        raise InvalidWebhookUrl(
            "The URL must be short and written in ASCII, without spaces "
            "(a name with other letters in its xn-- form).",
            param="url",
        )
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise InvalidWebhookUrl("Webhooks are sent over https only.", param="url")
    if not host or len(host) > MAX_HOST_CHARACTERS or port == 0:
        raise InvalidWebhookUrl("The URL must name a host.", param="url")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidWebhookUrl("The URL must have no user, password or fragment.", param="url")
    literal = _literal(host)
    if literal is not None and not may_be_sent_to(literal, allow_private=allow_private):
        raise InvalidWebhookUrl("Webhooks are sent to public addresses only.", param="url")
    return parts


async def resolve(url: str, *, allow_private: bool) -> Target:
    """Find the address that a webhook is sent to.

    Raises:
        InvalidWebhookUrl: the URL may not be used (any more: settings can change).
        NameUnknown: the name cannot be resolved.
        TargetRefused: the name has an address in a network that is not public.
    """
    parts = check_url(url, allow_private=allow_private)
    host = parts.hostname or ""
    port = parts.port or PORTS[parts.scheme]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NameUnknown from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses:
        raise NameUnknown
    # One bad address spoils the name: nobody has an honest reason to mix them.
    if not all(may_be_sent_to(one, allow_private=allow_private) for one in addresses):
        raise TargetRefused
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path, str(addresses[0]))


def may_be_sent_to(address: Address, *, allow_private: bool) -> bool:
    """Tell whether webhooks may go there.

    Link-local addresses, where clouds keep their machines' credentials, are refused in any case.
    """
    inner = _inner(address)
    if inner.is_multicast or inner.is_link_local or inner.is_unspecified:
        return False
    return allow_private or (inner.is_global and not _is_local(inner))


def _inner(address: Address) -> Address:
    """Give the IPv4 address that one of IPv6 stands for, if it stands for one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in block for block in HOLD_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _is_local(address: Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or address in LOCAL_NAT64
    )


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
