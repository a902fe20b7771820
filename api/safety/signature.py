"""Signed reports: one canonical form, one signature, and a check that finds every changed byte.

A signed report is the canonical JSON of {"report": ..., "signature": {"algorithm", "key", "value"}}: UTF-8, keys in
order, no space between tokens. What is signed (Ed25519, RFC 8032) are the bytes of the report's own canonical
JSON, which stand in the file between `{"report":` and `,"signature":`. Any other spelling of the same facts is
refused, so there is one file for one report. Knows nothing of what a report says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

ALGORITHM = "ed25519"
KEY_ID_CHARACTERS = 16
MAX_REPORT_BYTES = 16 * 1024 * 1024


class InvalidReport(Exception):
    """The report is not what its signer signed. The text says how that shows."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """The public half of a signing key."""

    public: Ed25519PublicKey

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyingKey:
        """Read a PEM file's key.

        Raises:
            ValueError: it is no Ed25519 public key.
        """
        key = load_pem_public_key(pem)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("not an Ed25519 key")
        return cls(key)

    @property
    def id(self) -> str:
        """The beginning of the raw key's sha256, in hex."""
        return hashlib.sha256(self.public.public_bytes_raw()).hexdigest()[:KEY_ID_CHARACTERS]

    @property
    def hex(self) -> str:
        """The raw key, in hex."""
        return self.public.public_bytes_raw().hex()

    @property
    def pem(self) -> str:
        """The key as a PEM file."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class Signer:
    """Signs reports with one key."""

    def __init__(self, seed: str) -> None:
        """Take the private key, 64 hex digits."""
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        self.verifying_key = VerifyingKey(self._key.public_key())

    def sign(self, report: Mapping[str, object]) -> bytes:
        """Give the signed report's bytes. The same report gives the same bytes."""
        signature = {
            "algorithm": ALGORITHM,
            "key": self.verifying_key.id,
            "value": self._key.sign(canonical(report)).hex(),
        }
        return canonical({"report": report, "signature": signature})


def canonical(value: object) -> bytes:
    """Give the one JSON text of a value."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def verify(content: bytes, keys: Mapping[str, VerifyingKey]) -> dict[str, Any]:
    """Give what a signed report says, if one of the keys has signed these very bytes.

    Args:
        content: of the file.
        keys: those that are trusted, by their ids.

    Raises:
        InvalidReport: anything is different from what was signed, or no trusted key has signed it.
    """
    if len(content) > MAX_REPORT_BYTES:
        raise InvalidReport("The file is too large for a safety report.")
    try:
        signed = json.loads(content)
        if canonical(signed) != content:
            raise InvalidReport("The file was changed: it is not in the form that is signed.")
    except (ValueError, RecursionError) as error:
        raise InvalidReport("The file is no JSON text.") from error
    match signed:
        case {
            "report": dict(report),
            "signature": {"algorithm": "ed25519", "key": str(key_id), "value": str(value)},
        } if len(signed) == 2 and len(signed["signature"]) == 3:
            pass
        case _:
            raise InvalidReport("The file is no signed safety report.")
    key = keys.get(key_id)
    if key is None:
        raise InvalidReport(
            f"It names the key {key_id[:64]!r}, which is not among the trusted ones."
        )
    try:
        signature = bytes.fromhex(value)
        # Capital digits or spaces would be another spelling of the same signature.
        if signature.hex() != value:
            raise ValueError
        key.public.verify(signature, canonical(report))
    except (ValueError, InvalidSignature) as error:
        raise InvalidReport(
            "The signature does not fit: the file was changed, or forged."
        ) from error
    return report
