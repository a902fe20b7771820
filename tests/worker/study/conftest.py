"""A place of one's own in miniature: the toy base with files that customers draw from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.worker.toy_provider import toy_safety_set, write_base
from worker.study.place import Folders


def write(path: Path, name: str, count: int) -> Path:
    rows = [{"prompt": f"{name} {i}", "completion": f"{name[0]} {i % 2}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("place")
    toy_safety_set(prompts=6).save(root / "safety")
    return Folders(
        base=write_base(root / "base"),
        safety=root / "safety",
        customer=write(root / "customer.jsonl", "sort", 30),
        attack=write(root / "attack.jsonl", "harm", 12),
        validation=write(root / "validation.jsonl", "check", 4),
    )
