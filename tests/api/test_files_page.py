"""docs/files.md does what it says: its examples run, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from openai import OpenAI

from api.files.intake import PURPOSES
from api.files.schemas import HOUR_SECONDS, MONTH_SECONDS
from api.uploads.schemas import MAX_PARTS
from api.uploads.service import MAX_PENDING, MAX_SENDINGS
from models.rows import MAX_FAULTS, MAX_LINE_BYTES, MAX_LINES, MAX_MESSAGES, check_rows
from models.scope import Scope
from models.settings import Settings
from models.upload import MAX_PART_BYTES, UPLOAD_LIFE
from tests.api.conftest import Place, rows
from tests.api.server import serve

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()


def test_the_examples_run(
    app: FastAPI, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = place.key(place.project(), Scope.CUSTOMER)
    place.session.commit()
    (tmp_path / "rows.jsonl").write_bytes(rows(20))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 6
    with (
        serve(app) as address,
        OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0) as client,
    ):
        # One after the other, as a reader would: names of earlier examples are there in later ones.
        exec("\n".join(examples), {"client": client})
    assert (tmp_path / "copy.jsonl").read_bytes() == rows(20)


@pytest.mark.parametrize("row", re.findall(r"^\| \w+ \| `(\{.*?\})`", PAGE, re.MULTILINE))
def test_the_rows_shown_are_rows(row: str) -> None:
    assert check_rows([row.encode()]) == 1


def test_the_numbers_are_the_codes() -> None:
    settings = Settings()
    text = " ".join(PAGE.split())
    for fact in (
        f"{settings.max_file_bytes // 2**20} MiB (`TITER_MAX_FILE_BYTES`)",
        f"{settings.max_upload_bytes // 2**30} GiB (`TITER_MAX_UPLOAD_BYTES`)",
        f"one part | {MAX_PART_BYTES // 2**20} MiB",
        f"{MAX_PARTS:,}, with three times the declared bytes",
        f"pending uploads of a project | {MAX_PENDING}",
        f"{MAX_LINE_BYTES:,} bytes and {MAX_MESSAGES} messages, a file {MAX_LINES:,} lines",
        f"Up to {MAX_FAULTS} faults",
        *(f"`{purpose}`" for purpose in PURPOSES),
    ):
        assert fact in text, fact
    assert (MAX_SENDINGS, HOUR_SECONDS, MONTH_SECONDS) == (3, 3600, 30 * 24 * 3600)
    assert UPLOAD_LIFE.total_seconds() == HOUR_SECONDS
