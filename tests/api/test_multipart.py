"""Forms that stream: the same however they are cut, and refused when they are no form."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from api.multipart import MAX_FIELD_BYTES, MAX_FIELDS, Form, InvalidUpload, read_form

KIND = 'multipart/form-data; boundary="a b"'


def field(name: str, value: bytes) -> bytes:
    return (
        f'--a b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
    )


def file(content: bytes, name: str = "file", filename: str = "a.jsonl") -> bytes:
    return (
        (
            f'--a b\r\ncontent-disposition: form-data; name="{name}"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        + content
        + b"\r\n"
    )


END = b"--a b--\r\n"


def read(
    chunks: list[bytes], kind: str | None = KIND, *, is_cut: bool = False
) -> tuple[Form, bytes]:
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    messages.append(
        {"type": "http.disconnect"}
        if is_cut
        else {"type": "http.request", "body": b"", "more_body": False}
    )
    headers = [(b"content-type", kind.encode())] if kind else []
    scope = {"type": "http", "method": "POST", "headers": headers}
    written = bytearray()

    async def receive() -> Message:
        return messages.pop(0)

    async def go() -> Form:
        return await read_form(Request(scope, receive), file_field="file", write=written.extend)

    return anyio.run(go), bytes(written)


@given(
    content=st.binary(max_size=200) | st.text("-a b\r\n", max_size=200).map(str.encode),
    cuts=st.lists(st.integers(0, 500), max_size=10),
)
def test_a_form_is_the_same_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    # A boundary inside the content would end it, as anyone who wrote the form knows.
    content = content.replace(b"--a b", b"")
    body = field("purpose", "fine-tüne".encode()) + file(content) + field("more", b"") + END
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[i:j] for i, j in pairwise(places)]
    form, written = read(chunks)
    assert written == content
    assert form == Form({"purpose": "fine-tüne", "more": ""}, "a.jsonl")


def test_much_content_comes_in_order() -> None:
    content = b"".join(str(i).encode() + b"\r\n" for i in range(600_000))
    body = file(content) + END
    chunks = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
    assert read(chunks)[1] == content


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"garbage", None),
        (file(b"x"), None),
        (file(b"x") + b"--a b", None),
        (END, "file"),
        (field("file", b"x") + END, "file"),
        (file(b"x", name="other") + END, "file"),
        (file(b"x") + file(b"y") + END, "file"),
        (field("a", b"x") + field("a", b"y") + file(b"x") + END, None),
        (b"".join(field(str(i), b"") for i in range(MAX_FIELDS + 1)) + file(b"") + END, None),
        (field("a", b"x" * (MAX_FIELD_BYTES + 1)) + file(b"x") + END, None),
        (b"--a b\r\n\r\nno header\r\n" * 2 + file(b"x") + END, None),
        (b"--a b\r\n" + b"X: y\r\n" * 1000 + b"\r\n\r\n" + END, None),
        (b"--a b\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n\r\n" + END, None),
    ],
)
def test_what_is_no_such_form_is_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidUpload) as caught:
        read([body])
    assert caught.value.param == param


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 300}",
        "multipart/mixed; boundary=b",
    ],
)
def test_another_kind_of_body_is_refused(kind: str | None) -> None:
    with pytest.raises(InvalidUpload, match="must be a multipart form"):
        read([file(b"x") + END], kind)


def test_a_client_that_goes_away_is_no_fault_of_the_form() -> None:
    with pytest.raises(ClientDisconnect):
        read([file(b"x")], is_cut=True)
