"""Bytes on their way in: written to a place of their own in storage, hashed as they pass, then checked.

Whether they came in one request or in parts, and however many they are, they go through here: `taking_in`,
then `checked`. What `api.files.service` is then given is known to be good, and lies in storage already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from models.base import new_id
from models.errors import DomainError
from models.rows import check_rows
from models.storage import Storage
from models.upload import incoming_key

FINE_TUNE = "fine-tune"
# Those that OpenAI's file object can show again; `evals`, which may be asked for, is not among them.
PURPOSES = ("assistants", "batch", FINE_TUNE, "user_data", "vision")


class UnsupportedPurpose(DomainError):
    """The purpose is none of those that files can be uploaded for."""

    code = "unsupported_purpose"


class FileTooLarge(DomainError):
    """The file is larger than the service accepts."""

    status_code = 413
    code = "file_too_large"


class EmptyFile(DomainError):
    """The file has no bytes."""

    code = "empty_file"


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes in storage that belong to nobody yet. `rows` is set once a data set was checked."""

    key: str
    bytes: int
    sha256: str
    rows: int | None = None


class Intake:
    """Counts, hashes and writes what it is given."""

    def __init__(
        self, write: Callable[[bytes], int], key: str, *, max_bytes: int, param: str
    ) -> None:
        self._write = write
        self._key = key
        self._max_bytes = max_bytes
        self._param = param
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            FileTooLarge: they are too many.
        """
        self._bytes += len(chunk)
        if self._bytes > self._max_bytes:
            raise FileTooLarge(
                f"The file is larger than {self._max_bytes:,} bytes.", param=self._param
            )
        self._sha256.update(chunk)
        self._write(chunk)

    @property
    def content(self) -> Content:
        """What was taken in; it can be read once `taking_in` has ended."""
        return Content(self._key, self._bytes, self._sha256.hexdigest())


@contextmanager
def taking_in(
    storage: Storage, *, max_bytes: int, name: str | None = None, param: str = "file"
) -> Iterator[Intake]:
    """Open a place for bytes. Nothing stays when the block ends by an exception.

    Args:
        storage: where the place is.
        max_bytes: how many are accepted.
        name: of the place; one that nobody else has, when absent.
        param: the field that errors name.
    """
    key = incoming_key(name or new_id("file"))
    with storage.writing(key) as write:
        yield Intake(write, key, max_bytes=max_bytes, param=param)


def known_purpose(purpose: str) -> str:
    """Give the purpose back.

    Raises:
        UnsupportedPurpose: there is no such one.
    """
    if purpose not in PURPOSES:
        raise UnsupportedPurpose(
            f"The purpose must be one of {', '.join(PURPOSES)}; only {FINE_TUNE!r} makes a data set.",
            param="purpose",
        )
    return purpose


@contextmanager
def checked(storage: Storage, content: Content, purpose: str) -> Iterator[Content]:
    """Check content for its purpose and lend it to whoever keeps it; what is not kept is removed.

    Raises:
        EmptyFile: there is nothing in it.
        InvalidRows: it is a data set and rows are faulty; the error names each of them.
    """
    try:
        if content.bytes == 0 and purpose != FINE_TUNE:
            raise EmptyFile(param="file")
        rows = check_rows(storage.lines(content.key)) if purpose == FINE_TUNE else None
        yield replace(content, rows=rows)
    finally:
        # Kept content has another key by now.
        storage.delete(content.key)
