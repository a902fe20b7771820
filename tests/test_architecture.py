"""Who may import whom: the contracts hold, they bite, and no process loads what it must not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from api import queue

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "models", "worker")
TENSORS = ("torch", "transformers", "peft", "accelerate", "safetensors")
#: What the service is made of. A client of it that loads one of these takes seconds to say a word.
SERVICE = (
    *("alembic", "celery", "fastapi", "huggingface_hub", "obstore", "psycopg", "pydantic", "redis"),
    *("sqlalchemy", "starlette"),
)
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
]
#: One breach of each contract and of no other, in order: a module, and what it has no business importing.
BREACHES = [
    ("api/errors.py", "worker.row_order"),
    ("models/rate.py", "torch"),
    ("models/rows.py", "redis"),
    ("worker/pipeline.py", "celery"),
    ("worker/trainers/sft.py", "models.session"),
]


def check_contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(
        "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))", folder
    )


def run(program: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Wide, because the report folds its lines to the terminal.
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestContracts:
    def test_hold(self) -> None:
        result = check_contracts(ROOT)
        assert result.returncode == 0, result.stdout + result.stderr
        for name in CONTRACTS:
            assert f"{name} KEPT" in result.stdout

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        return tmp_path

    def test_bite(self, copy: Path) -> None:
        assert len(BREACHES) == len(CONTRACTS)
        for module, imported in BREACHES:
            with (copy / module).open("a") as file:
                file.write(f"\nimport {imported}\n")
        result = check_contracts(copy)
        assert result.returncode == 1
        for name in CONTRACTS:
            assert f"{name} BROKEN" in result.stdout, result.stdout


def loaded_after(imported: str, forbidden: tuple[str, ...]) -> str:
    """Import modules in a fresh interpreter; linters read source, this reads what really happened."""
    result = run(f"import {imported}, sys; print(sorted(set({forbidden!r}) & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.processes
class TestWhatIsLoaded:
    def test_the_api_s_processes_load_no_tensors(self) -> None:
        modules = "api.app, api.sweeper, api.cli, api.embedded.up"
        assert loaded_after(modules, TENSORS) == "[]"

    def test_the_command_line_loads_nothing_that_the_service_is_made_of(self) -> None:
        assert loaded_after("api.cli.main", (*TENSORS, *SERVICE)) == "[]"

    def test_whoever_can_open_a_database_knows_every_table(self) -> None:
        described = {
            name
            for path in (ROOT / "models").glob("*.py")
            for name in re.findall(r'__tablename__ = "(\w+)"', path.read_text())
        }
        result = run(
            "import models.session; from models.base import Base; print(*Base.metadata.tables)"
        )
        assert result.returncode == 0, result.stderr
        assert set(result.stdout.split()) == described

    @pytest.mark.parametrize("modules", ["api.app, api.sweeper", "worker.metrics, worker.stages"])
    def test_who_does_not_trace_loads_no_tracer(self, modules: str) -> None:
        assert loaded_after(modules, ("opentelemetry.sdk.trace", "models.spans")) == "[]"

    def test_the_vocabulary_loads_no_framework(self) -> None:
        forbidden = (*TENSORS, "fastapi", "starlette", "celery", "redis")
        modules = ", ".join(
            f"models.{path.stem}"
            for path in sorted((ROOT / "models").glob("*.py"))
            # It is loaded where traces are wanted, and is the one that knows their library.
            if path.stem not in ("__init__", "spans")
        )
        assert loaded_after(modules, forbidden) == "[]"

    def test_a_trainer_loads_neither_queue_nor_settings(self) -> None:
        modules = "worker.trainers.loop, worker.trainers.methods"
        forbidden = (
            "celery",
            "fastapi",
            "psycopg",
            "sqlalchemy",
            "models.session",
            "models.settings",
        )
        assert loaded_after(modules, forbidden) == "[]"


class TestDoorbell:
    def test_the_worker_answers_to_what_the_api_rings(self) -> None:
        from worker import tasks

        assert queue.TASK in tasks.app.tasks
        assert tasks.app.conf.task_default_queue == queue.QUEUE

    def test_celery_is_known_to_two_modules(self) -> None:
        knowing = {
            path.relative_to(ROOT).as_posix()
            for package in PACKAGES
            for path in (ROOT / package).rglob("*.py")
            if any(
                line.startswith(("import celery", "from celery"))
                for line in map(str.strip, path.read_text().splitlines())
            )
        }
        assert knowing == {"api/queue.py", "worker/tasks.py"}
