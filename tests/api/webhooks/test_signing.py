"""Signatures that the stock client accepts, and secrets that a copy of the database does not give away."""

from __future__ import annotations

import base64
import time

import openai
import pytest
from openai import OpenAI
from pydantic import SecretStr, ValidationError

from api.webhooks.signing import (
    SecretBox,
    SecretUnreadable,
    WebhooksNotConfigured,
    hint,
    new_secret,
    sign,
)
from models.settings import Settings

BODY = b'{"id":"evt_1","object":"event","created_at":1,"type":"fine_tuning.job.failed","data":{"id":"f"}}'


def unwrap(secret: str, signature: str, timestamp: int, body: bytes = BODY) -> object:
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }
    return OpenAI(api_key="x", webhook_secret=secret).webhooks.unwrap(body, headers)


class TestSign:
    def test_the_specifications_arithmetic(self) -> None:
        # HMAC-SHA256 of "a.1.{}" under 32 times the letter k, worked out with openssl.
        secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
        assert sign([secret], id="a", timestamp=1, body=b"{}") == (
            "v1,iVAnxCN3GAM90Pwzd4OfhjD1LzqscV+mzi+aLhEmy5I="
        )

    def test_the_client_accepts_either_secret_of_a_rotation(self) -> None:
        new, old, other = new_secret(), new_secret(), new_secret()
        now = int(time.time())
        signature = sign([new, old], id="evt_1", timestamp=now, body=BODY)
        for secret in (new, old):
            assert unwrap(secret, signature, now).type == "fine_tuning.job.failed"  # type: ignore[attr-defined]
        for secret, body in ((other, BODY), (new, BODY + b" ")):
            with pytest.raises(openai.InvalidWebhookSignatureError):
                unwrap(secret, signature, now, body)


class TestSecretBox:
    KEY = "k" * 32

    def test_opens_what_it_sealed_and_shows_nothing(self) -> None:
        secret = new_secret()
        sealed = SecretBox(self.KEY).seal(secret)
        assert secret not in sealed
        assert SecretBox(self.KEY).open(sealed) == secret
        assert SecretBox(self.KEY).seal(secret) != sealed

    def test_another_key_opens_nothing(self) -> None:
        sealed = SecretBox(self.KEY).seal(new_secret())
        with pytest.raises(SecretUnreadable):
            SecretBox("j" * 32).open(sealed)
        with pytest.raises(SecretUnreadable):
            SecretBox(self.KEY).open("sealed")

    def test_secrets_are_long_and_never_the_same(self) -> None:
        made = {new_secret() for _ in range(10)}
        assert len(made) == 10
        assert {len(base64.b64decode(secret.removeprefix("whsec_"))) for secret in made} == {32}

    def test_the_hint_is_short(self) -> None:
        secret = new_secret()
        assert hint(secret) == f"whsec_...{secret[-4:]}"

    def test_without_a_key_there_are_no_webhooks(self) -> None:
        with pytest.raises(WebhooksNotConfigured):
            SecretBox.of(Settings())

    def test_a_short_key_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="at least 32 characters"):
            Settings(webhook_key=SecretStr("k" * 31))
        assert SecretBox.of(Settings(webhook_key=SecretStr("k" * 32)))
