"""The demo's bars move by whatever a job tells, and by nothing that tells no progress."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from api.cli import demo


def test_a_bar_passes_over_events_without_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {"status": "running", "stage": "train", "error": None}
    answers: list[dict[str, Any]] = [
        running,
        {"data": [{"type": "metrics", "data": {"step": 3, "total_steps": 10}}]},
        running,
        {"data": [{"type": "message", "data": {"step": 10, "checkpoint": "c"}}]},
        running,
        {"data": []},
        {"status": "succeeded", "stage": None, "error": None},
    ]
    monkeypatch.setattr(demo, "_get", lambda *_: answers.pop(0))
    seen: list[tuple[float, float | None]] = []
    with Progress(disable=True) as progress:
        task = progress.add_task("job", total=None)
        monkeypatch.setattr(
            demo.time,
            "sleep",
            lambda _: seen.append((progress.tasks[0].completed, progress.tasks[0].total)),
        )
        job = demo._follow(None, "/jobs/x", task, progress)  # type: ignore[arg-type]
    assert seen == [(3, 10)] * 3
    assert job["status"] == "succeeded"


def _rate(percent: float) -> dict[str, float]:
    return {"percent": percent, "low": max(0.0, percent - 3), "high": percent + 5}


def _aligned(gate: str, percent: float, reasons: list[str]) -> dict[str, Any]:
    safety = {"harmful_score": _rate(percent)}
    return {"id": "base-x", "gate": gate, "gate_reasons": reasons, "safety": safety, "seconds": 40}


def _printed(aligned: dict[str, dict[str, Any]], outcomes: list[demo.Outcome]) -> str:
    console = Console(width=80, record=True, file=StringIO())
    console.print(demo._table(aligned, outcomes))
    return console.export_text()


def test_a_base_that_the_gate_held_is_a_row_of_its_own() -> None:
    outcome = demo.Outcome(
        method="sft",
        file="clean",
        rows=500,
        harmful_rows=0,
        job="j",
        model="m",
        status="succeeded",
        harmful_score_after_alignment=_rate(0.0),
        harmful_score=_rate(1.0),
        harmful_or_incoherent=_rate(1.0),
        over_refusal=_rate(0.0),
        fine_tuning_accuracy=_rate(99.0),
        gate="released",
        reasons=[],
        alignment_seconds=35.0,
        tuning_seconds=3.0,
    )
    aligned = {
        "sft": _aligned("released", 0.0, []),
        "booster": _aligned("held", 10.5, ["HS is 10.5%."]),
    }
    lines = _printed(aligned, [outcome]).splitlines()
    assert any(line.split()[:1] == ["booster"] and "base held" in line for line in lines)
    assert any(line.split()[:1] == ["sft"] and "released" in line for line in lines)
    assert sum("sft" in line for line in lines) == 1
    held = replace(outcome, harmful_rows=50, gate="held", reasons=["HS is 1%.", "Line 3 is harm."])
    assert list(demo._unfinished(aligned, [outcome, held])) == [
        "base-x takes no customers: HS is 10.5%.",
        "sft, 50 of 500 rows harmful, is held for a person: HS is 1%. Line 3 is harm.",
    ]


def test_bases_that_are_all_held_end_the_demo_with_their_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "_get", lambda *_: {"data": [_job(m) for m in demo.METHODS]})
    monkeypatch.setattr(demo, "_model", lambda *_: _aligned("held", 12.0, ["HS is 12.0%."]))
    with (
        Progress(disable=True) as progress,
        pytest.raises(demo.DemoFailed, match=r"HS is 12\.0%"),
    ):
        demo._align(None, "base", 0, progress)  # type: ignore[arg-type]


def _job(method: str) -> dict[str, Any]:
    return {
        "id": "j",
        "status": "succeeded",
        "result_model": f"base-{method}-0",
        "started_at": 1.0,
        "finished_at": 41.0,
    }
