"""Multipart forms whose one file is passed on while it arrives, so that it is never held anywhere whole.

FastAPI's own forms keep the file in `/tmp` first, which a container has in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from models.errors import DomainError
from models.storage import CHUNK_BYTES

MAX_FIELDS = 8
MAX_FIELD_BYTES = 4096
MAX_BOUNDARY_BYTES = 256


class InvalidUpload(DomainError):
    """An upload is a multipart form with one file."""

    code = "invalid_upload"


@dataclass(slots=True)
class Form:
    """What a form said beside its file. `filename` is None as long as no file came."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read_form(request: Request, *, file_field: str, write: Callable[[bytes], object]) -> Form:
    """Read a form to its end.

    Args:
        request: its body was not read yet.
        file_field: the name of the part that holds the file.
        write: is given the file's bytes, in order, in a worker thread.

    Raises:
        InvalidUpload: it is no form, it breaks off, or it has no file or another one.
    """
    reader = _Reader(file_field)
    parser = MultipartParser(_boundary(request), reader.callbacks())  # type: ignore[arg-type]
    try:
        async for chunk in request.stream():
            parser.write(chunk)
            if len(reader.arrived) >= CHUNK_BYTES:
                await run_in_threadpool(write, reader.take())
    except FormParserError as error:
        raise InvalidUpload("The body is not a well-formed multipart form.") from error
    if not reader.has_ended:
        raise InvalidUpload("The form breaks off before its last boundary.")
    if reader.form.filename is None:
        raise InvalidUpload(
            f"The form has no part `{file_field}` with a file name.", param=file_field
        )
    if reader.arrived:
        await run_in_threadpool(write, reader.take())
    return reader.form


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise InvalidUpload("The body must be a multipart form (multipart/form-data; boundary=…).")
    return boundary


class _Reader:
    """Takes the parser's calls and keeps the small fields and what arrived of the file since the last `take`."""

    def __init__(self, file_field: str) -> None:
        self.file_field = file_field
        self.form = Form()
        self.arrived = bytearray()
        self.has_ended = False
        self._header = self._value = b""
        self._disposition = b""
        self._name: str | None = None
        self._text = bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def take(self) -> bytes:
        arrived = bytes(self.arrived)
        self.arrived.clear()
        return arrived

    def _begin(self) -> None:
        self._disposition = b""
        self._text.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _text(options.get(b"name", b""))
        if b"filename" not in options:
            if len(self.form.fields) == MAX_FIELDS or name in self.form.fields:
                raise InvalidUpload(f"The form has more than {MAX_FIELDS} fields, or one twice.")
            self._name = name
            return
        if name != self.file_field or self.form.filename is not None:
            raise InvalidUpload(
                f"The form may have one file, in the part `{self.file_field}`.",
                param=self.file_field,
            )
        self._name = None
        self.form.filename = _text(options[b"filename"])

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self.arrived += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidUpload(
                f"The field {self._name[:64]!r} is longer than {MAX_FIELD_BYTES:,} bytes."
            )

    def _end(self) -> None:
        if self._name is not None:
            self.form.fields[self._name] = _text(bytes(self._text))

    def _finish(self) -> None:
        self.has_ended = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
