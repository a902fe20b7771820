"""`titer paper`: what it passes on, and what it writes from what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli.main import app
from api.cli.paper import Study
from tests.worker.study.test_summary import cell
from worker.study.grid import Task
from worker.study.studies import STUDIES


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["paper", *arguments])
    return result.exit_code, result.output


def test_knows_every_study() -> None:
    assert {study.value for study in Study} == {*STUDIES, "overhead"}


@pytest.mark.processes
def test_writes_table_and_figure_of_the_cells_that_there_are(tmp_path: Path) -> None:
    study = STUDIES["shipped"]
    customer = next(iter(study.customers))
    task = Task(
        study.arms[0], customer, study.customers[customer], study.seeds[0], world=study.world
    )
    point = {"over_refused": 1, "harmless_prompts": 100, "helped": 99, "harmful_or_incoherent": 7}
    facts = cell(study.seeds[0], (50, 50))
    points = [{**p, **point} for p in facts["points"]]  # type: ignore[attr-defined]
    known = {**facts, "points": points, "key": task.key, "alignment_seconds": 12.0}
    (tmp_path / "shipped.jsonl").write_text(json.dumps(known) + "\n")
    code, output = run("shipped", "--report-only", "--out", str(tmp_path))
    assert code == 0, output
    table = (tmp_path / "shipped.md").read_text()
    assert "| SFT | 1 × |" in table
    assert "25 (" in table
    assert (tmp_path / "shipped.png").is_file()


def test_a_base_of_ones_own_needs_all_of_its_files(tmp_path: Path) -> None:
    code, output = run("table1", "--base", str(tmp_path))
    assert code == 1
    assert "--safety-set" in output


def test_an_unknown_study_is_named() -> None:
    code, output = run("table9")
    assert code == 2
    assert "table9" in output
