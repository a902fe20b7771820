"""Signing in at an OpenID provider: authorization code, PKCE, state and nonce; the ID token is all that is believed.

Knows the provider and nothing of the database: it gives a `Person`, who was verified and has a role. What was
begun is kept in the browser's signed cookie and is worth one try. Claims are another's words: roles are compared
as whole strings, names are cut, and an address counts only if the provider says that it verified it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import structlog
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from fastapi import Request
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from api.keys.people import Person
from models.errors import DomainError, Forbidden
from models.scope import Scope
from models.settings import Settings

log = structlog.get_logger(__name__)

CALLBACK = "/dashboard/login/callback"
#: Signatures by a key that only the provider has: never one that the client's secret, or nobody, could make.
ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
BEGUN_SECONDS = 600
PROVIDER_KEPT_SECONDS = 3600.0
#: A token by an unknown key has the keys fetched anew, but not more often than this.
KEYS_KEPT_SECONDS = 30.0
LEEWAY_SECONDS = 60
TIMEOUT_SECONDS = 10.0
MAX_SUBJECT = 255
MAX_NAME = 100
_SESSION = "openid"


class ProviderUnavailable(DomainError):
    """The sign-in service does not answer as it should. Try again, or sign in with an API key."""

    status_code = 502
    code = "sign_in_unavailable"


class NotBegun(Forbidden):
    """This sign-in was not begun here, or too long ago. Try again."""

    code = "sign_in_not_begun"


class SignInRefused(Forbidden):
    """The sign-in service did not vouch for you. Try again."""

    code = "sign_in_refused"


class NoRole(Forbidden):
    """Your account has no role here. Ask whoever runs this service to give it one."""

    code = "no_role"

    def __init__(self, identity: str) -> None:
        """Keep whom the provider vouched for."""
        self.identity = identity
        super().__init__()


@dataclass(frozen=True, slots=True)
class Provider:
    """What the provider says of itself, and when it did."""

    authorization_endpoint: str
    token_endpoint: str
    keys: KeySet
    read_at: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that waits for the browser to come back."""

    state: str
    nonce: str
    verifier: str
    next: str
    until: float


class OpenId:
    """Signs people in at the provider that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.oidc_name
        self._issuer = settings.oidc_issuer
        self._client_id = settings.oidc_client_id
        self._client_secret = settings.oidc_client_secret.get_secret_value() or None
        self._scope = settings.oidc_scope
        self._redirect_uri = settings.public_url.rstrip("/") + CALLBACK
        self._claim = settings.oidc_roles_claim
        self._roles = settings.oidc_roles
        self._domains = settings.allowed_domains
        # Read once: that takes longer than all else here.
        self._authorities = httpx2.create_ssl_context()
        self._provider: Provider | None = None

    async def begin(self, request: Request, next: str) -> str:
        """Remember in the session what to expect; give the address where the person signs in.

        Raises:
            ProviderUnavailable: the provider cannot be asked where that is.
        """
        provider = await self._read_provider()
        nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        async with self._client() as client:
            address, state = client.create_authorization_url(
                provider.authorization_endpoint,
                state=secrets.token_urlsafe(32),
                nonce=nonce,
                code_verifier=verifier,
            )
        request.session[_SESSION] = {
            "state": state,
            "nonce": nonce,
            "verifier": verifier,
            "next": next,
            "until": time.time() + BEGUN_SECONDS,
        }
        return str(address)

    async def finish(self, request: Request) -> tuple[Person, str]:
        """Give who has signed in, and the page that was asked for.

        Raises:
            NotBegun: the session expects nobody, or somebody else.
            SignInRefused: the provider refused, or its token does not hold.
            ProviderUnavailable: the provider cannot be asked.
            NoRole: nothing that the provider says of the person is a role here.
        """
        begun = _take_begun(request)
        asked = request.query_params
        if asked.get("iss", self._issuer) != self._issuer:
            raise SignInRefused
        if "error" in asked or not asked.get("code"):
            # What it says of the reason was written elsewhere, and is not shown.
            raise SignInRefused
        claims = await self._exchange(asked["code"], begun)
        return self._person(claims), begun.next

    async def _exchange(self, code: str, begun: Begun) -> dict[str, Any]:
        provider = await self._read_provider()
        try:
            async with self._client() as client:
                answer = await client.fetch_token(
                    provider.token_endpoint, code=code, code_verifier=begun.verifier
                )
            token = answer["id_token"]
        except Exception as error:
            # A code that was used before, a secret that was changed, or an answer that is none.
            log.warning("openid_exchange_failed", kind=type(error).__name__)
            raise SignInRefused from error
        try:
            return await self._verify(str(token), str(answer.get("access_token", "")), begun.nonce)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("openid_token_refused", kind=type(error).__name__)
            raise SignInRefused from error

    async def _verify(self, token: str, access_token: str, nonce: str) -> dict[str, Any]:
        provider = await self._read_provider()
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        try:
            decoded = jwt.decode(token, provider.keys, registry=registry)
        except (JoseError, ValueError):
            # The provider may have a new key since.
            provider = await self._read_provider(kept_seconds=KEYS_KEPT_SECONDS)
            decoded = jwt.decode(token, provider.keys, registry=registry)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            {
                "iss": {"essential": True, "value": self._issuer},
                "aud": {"essential": True, "value": self._client_id},
            },
            {"nonce": nonce, "client_id": self._client_id, "access_token": access_token},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        return dict(claims)

    def _person(self, claims: dict[str, Any]) -> Person:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
            raise SignInRefused
        identity = f"{self._issuer} {subject}"
        address = _shown(claims.get("email")) if claims.get("email_verified") is True else None
        scopes = self._scopes(claims.get(self._claim))
        if not scopes or not self._lets_in(address):
            log.warning("openid_without_role")
            raise NoRole(identity)
        return Person(
            identity=identity,
            name=(address or _shown(subject) or "somebody")[:MAX_NAME],
            full_name=(_shown(claims.get("name")) or "")[:MAX_NAME] or None,
            scopes=scopes,
        )

    def _lets_in(self, address: str | None) -> bool:
        user, _, domain = (address or "").rpartition("@")
        is_address = bool(user) and "@" not in user
        return not self._domains or (is_address and domain.casefold() in self._domains)

    def _scopes(self, values: object) -> frozenset[Scope]:
        # One word is as good as a list of one; it is never searched for parts of it.
        listed = values if isinstance(values, list) else [values]
        return frozenset(
            Scope(self._roles[value])
            for value in listed
            if isinstance(value, str) and value in self._roles
        )

    async def _read_provider(self, *, kept_seconds: float = PROVIDER_KEPT_SECONDS) -> Provider:
        if self._provider and time.monotonic() - self._provider.read_at < kept_seconds:
            return self._provider
        try:
            async with self._client() as client:
                said = await _read(
                    client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
                )
                if said["issuer"] != self._issuer:
                    raise ValueError("it is another issuer")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    if not said[name].startswith(f"{urlsplit(self._issuer).scheme}://"):
                        raise ValueError("it would be spoken to in another way than it was asked")
                keys = await _read(client, said["jwks_uri"])
            self._provider = Provider(
                authorization_endpoint=str(said["authorization_endpoint"]),
                token_endpoint=str(said["token_endpoint"]),
                keys=KeySet.import_key_set({"keys": keys["keys"]}),
                read_at=time.monotonic(),
            )
        except Exception as error:
            # Whatever it answers, or does not: it is not ours.
            log.warning("openid_provider_unavailable", kind=type(error).__name__)
            raise ProviderUnavailable from error
        return self._provider

    def _client(self) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            client_id=self._client_id,
            client_secret=self._client_secret,
            token_endpoint_auth_method="client_secret_basic" if self._client_secret else "none",
            scope=self._scope,
            redirect_uri=self._redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_SECONDS,
            verify=self._authorities,
        )


def _take_begun(request: Request) -> Begun:
    kept = request.session.get(_SESSION)
    begun = Begun(**kept) if kept else None
    state = request.query_params.get("state", "")
    if begun is None or not secrets.compare_digest(state.encode(), begun.state.encode()):
        raise NotBegun
    del request.session[_SESSION]
    if begun.until < time.time():
        raise NotBegun
    return begun


async def _read(client: AsyncOAuth2Client, address: str) -> dict[str, Any]:
    answer = await client.request("GET", address, withhold_token=True)
    answer.raise_for_status()
    return dict(answer.json())


def _shown(value: object) -> str | None:
    """Give another's word for people to read, or nothing where it is no such word."""
    if not isinstance(value, str) or not value.isprintable():
        return None
    return value.strip() or None
