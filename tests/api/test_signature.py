"""Signed reports: every changed byte is found, whatever it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.safety.signature import InvalidReport, Signer, VerifyingKey, canonical, verify

SIGNER = Signer("01" * 32)
KEYS = {SIGNER.verifying_key.id: SIGNER.verifying_key}
REPORT: dict[str, object] = {"schema": "x/1", "score": 12.5, "name": "Größe", "n": [1, None, True]}
SIGNED = SIGNER.sign(REPORT)


def test_what_was_signed_is_read_back() -> None:
    assert verify(SIGNED, KEYS) == REPORT
    assert SIGNER.sign(dict(reversed(REPORT.items()))) == SIGNED


def test_what_is_signed_stands_in_the_file_as_the_page_says() -> None:
    body = SIGNED.removeprefix(b'{"report":').split(b',"signature":')[0]
    assert body == canonical(REPORT)
    value = bytes.fromhex(json.loads(SIGNED)["signature"]["value"])
    SIGNER.verifying_key.public.verify(value, body)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_one_changed_byte_is_found(place: int, flip: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= flip
    with pytest.raises(InvalidReport):
        verify(bytes(changed), KEYS)


@pytest.mark.parametrize(
    "changed",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        SIGNED + b"\n",
        b" " + SIGNED,
        SIGNED.replace(b'"score"', b'"score" '),
        json.dumps(json.loads(SIGNED), indent=1).encode(),
        # A key given twice: parsers disagree on which one counts.
        SIGNED.replace(b'{"report":', b'{"report":{},"report":'),
        SIGNED.replace(b'"ed25519"', b'"none"'),
        canonical({**json.loads(SIGNED), "more": 1}),
        canonical({"report": REPORT, "signature": None}),
        canonical({"report": REPORT, "signature": {**json.loads(SIGNED)["signature"], "more": 1}}),
    ],
)
def test_other_forms_are_refused(changed: bytes) -> None:
    with pytest.raises(InvalidReport):
        verify(changed, KEYS)


def test_the_signature_has_one_spelling() -> None:
    signed = json.loads(SIGNED)
    signed["signature"]["value"] = signed["signature"]["value"].upper()
    with pytest.raises(InvalidReport, match="does not fit"):
        verify(canonical(signed), KEYS)


def test_another_key_is_refused_also_under_this_ones_name() -> None:
    other = Signer("02" * 32)
    with pytest.raises(InvalidReport, match="not among the trusted"):
        verify(other.sign(REPORT), KEYS)
    with pytest.raises(InvalidReport, match="does not fit"):
        verify(
            canonical(
                {
                    "report": REPORT,
                    "signature": {
                        **json.loads(other.sign(REPORT))["signature"],
                        "key": SIGNER.verifying_key.id,
                    },
                }
            ),
            KEYS,
        )


def test_a_pem_file_is_the_same_key_and_others_are_refused() -> None:
    assert VerifyingKey.from_pem(SIGNER.verifying_key.pem.encode()).id == SIGNER.verifying_key.id
    with pytest.raises(ValueError, match="PEM"):
        VerifyingKey.from_pem(b"no key")
