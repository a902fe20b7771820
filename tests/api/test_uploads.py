"""Uploads over HTTP: parts in any order make one checked file, once, and nothing is left of those given up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import httpx

from tests.api.conftest import Place, Tenant, rows

UPLOADS = "/v1/uploads"
SECRET = "the-text-of-a-row"


def declare(tenant: Tenant, size: int = len(rows()), **more: object) -> httpx.Response:
    body = {
        "bytes": size,
        "filename": "rows.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
        **more,
    }
    return tenant.client.post(UPLOADS, json=body)


def begin(tenant: Tenant, size: int = len(rows()), **more: object) -> str:
    response = declare(tenant, size, **more)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def send(tenant: Tenant, upload: str, data: bytes) -> httpx.Response:
    return tenant.client.post(f"{UPLOADS}/{upload}/parts", files={"data": ("upload", data)})


def part(tenant: Tenant, upload: str, data: bytes) -> str:
    response = send(tenant, upload, data)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def complete(
    tenant: Tenant, upload: str, parts: Sequence[str], md5: str | None = None
) -> httpx.Response:
    return tenant.client.post(
        f"{UPLOADS}/{upload}/complete", json={"part_ids": list(parts), "md5": md5}
    )


def cancel(tenant: Tenant, upload: str) -> httpx.Response:
    return tenant.client.post(f"{UPLOADS}/{upload}/cancel")


def refused(
    response: httpx.Response, status: int, code: str, param: str | None
) -> dict[str, object]:
    error = dict(response.json()["error"])
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error


def incoming(place: Place) -> list[str]:
    assert place.storage.root is not None
    folder = place.storage.root / "incoming"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_parts_in_any_order_make_the_file_in_the_order_named(
    customer: Tenant, place: Place
) -> None:
    content = rows(30)
    upload = begin(customer, len(content))
    middle = part(customer, upload, content[100:250])
    last = part(customer, upload, content[250:])
    first = part(customer, upload, content[:100])
    shown = complete(
        customer, upload, [first, middle, last], hashlib.md5(content).hexdigest().upper()
    ).json()
    assert (shown["status"], shown["bytes"], shown["object"]) == (
        "completed",
        len(content),
        "upload",
    )
    file = shown["file"]
    assert (file["rows"], file["bytes"], file["expires_at"]) == (30, len(content), None)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert customer.client.get(f"/v1/files/{file['id']}/content").content == content
    assert customer.client.get(f"/v1/files/{file['id']}").json() == file
    # The parts are the sweeper's; nothing else stays.
    assert incoming(place) == sorted([first, middle, last])
