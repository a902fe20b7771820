"""Vendored files are what VENDORED.md says they are, and are served."""

from __future__ import annotations

import hashlib
import re

import pytest
from fastapi.testclient import TestClient

from api.dashboard.app import STATIC

VENDOR = STATIC / "vendor"
LISTED = dict(
    re.findall(r"\| `([^`]+)` \| `([0-9a-f]{64})` \|", (VENDOR / "VENDORED.md").read_text())
)


def test_every_vendored_file_is_listed_or_is_a_licence() -> None:
    present = {str(path.relative_to(VENDOR)) for path in VENDOR.rglob("*") if path.is_file()} - {
        "VENDORED.md"
    }
    assert {path for path in present if not path.endswith("/LICENSE")} == set(LISTED)
    assert {path.split("/")[0] for path in LISTED} == {
        path.split("/")[0] for path in present if path.endswith("/LICENSE")
    }


@pytest.mark.parametrize("path", sorted(LISTED))
def test_vendored_file_is_unchanged(path: str) -> None:
    assert hashlib.sha256((VENDOR / path).read_bytes()).hexdigest() == LISTED[path]


@pytest.mark.parametrize(
    "path", ["app.css", "app.js", "favicon.svg", *(f"vendor/{path}" for path in sorted(LISTED))]
)
def test_is_served_to_anybody_with_the_headers(visitor: TestClient, path: str) -> None:
    answer = visitor.get(f"/dashboard/static/{path}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_outside_is_served(visitor: TestClient) -> None:
    assert visitor.get("/dashboard/static/%2e%2e/app.py").status_code == 404
