"""The demo's bars move by whatever a job tells, and by nothing that tells no progress."""

from __future__ import annotations

from typing import Any

import pytest
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
