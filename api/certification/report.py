"""A certificate's stored files, as responses."""

from __future__ import annotations

from typing import Literal

from starlette.responses import Response

from models.storage import Storage
from models.stored_certificate import JSON_FILE, PAGE_FILE, PICTURE_FILE, StoredCertificate

Form = Literal["json", "html", "png"]

_FILES: dict[Form, tuple[str, str]] = {
    "json": (JSON_FILE, "application/json"),
    "html": (PAGE_FILE, "text/html; charset=utf-8"),
    "png": (PICTURE_FILE, "image/png"),
}
# The page brings its style along and nothing else: no script could run in it, and nothing is loaded.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def read_report(storage: Storage, stored: StoredCertificate, form: Form) -> Response:
    """Give one of the files.

    Raises:
        StorageMissing: it is not there.
    """
    name, media_type = _FILES[form]
    return Response(
        storage.get(f"{stored.prefix}/{name}"),
        media_type=media_type,
        headers={
            "content-security-policy": PAGE_POLICY,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        },
    )
