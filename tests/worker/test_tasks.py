"""What a worker's process does once it has let go of a job."""

from __future__ import annotations

import pytest

from worker import pipeline, tasks


@pytest.mark.parametrize(
    ("outcome", "does"),
    [
        ("carried", []),
        (None, []),
        ("crashed", []),
        (pipeline.INFRASTRUCTURE_FAILED, ["rest"]),
        (pipeline.MACHINE_FAILED, ["rest", "goodbye", "end"]),
    ],
)
def test_rests_after_a_fault_that_the_next_job_would_meet_and_ends_with_a_broken_device(
    monkeypatch: pytest.MonkeyPatch, outcome: str | None, does: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(tasks, "_workshop", lambda: None)
    monkeypatch.setattr(pipeline, "run_next", lambda _: outcome)
    monkeypatch.setattr(tasks, "_say_goodbye", lambda: done.append("goodbye"))
    monkeypatch.setattr("time.sleep", lambda _: done.append("rest"))
    monkeypatch.setattr("os._exit", lambda _: done.append("end"))
    tasks.run_job("ftjob-any")
    assert done == does
