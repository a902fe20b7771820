"""A file streams: what the api grows by while it takes one in is a fraction of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.upload_memory import (
    api_process,
    make_token,
    measure,
    stock_client,
    transfers,
    write_rows,
)

pytestmark = pytest.mark.processes
MEGABYTES = 40


def test_a_file_is_never_held_whole(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, MEGABYTES)
    with (
        api_process(database_url, tmp_path) as (process, address),
        stock_client(address, make_token(database_url)) as client,
    ):
        list(client.files.list(limit=1))
        found = [measure(process, way, MEGABYTES, act) for way, act in transfers(client, path)]
    assert len(found) == 3
    for each in found:
        assert each.growth_to_file < 0.5, each
