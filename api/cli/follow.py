"""Watches a job until it ends or waits for a person: a live bar with the loss and the canary.

Events are read in pages, newest first, back to the last one seen: no proxy can hold that up, as it can a stream.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from api.cli.connection import Connection, Json
from api.cli.output import console

ENDED = frozenset({"succeeded", "failed", "cancelled"})
REVIEWS = frozenset({"data_review", "review"})
POLL_SECONDS = 0.5
PAGE = 200


@dataclass
class _Watch:
    """One bar, fed by events."""

    progress: Progress
    task: TaskID

    def tell(self, event: Json) -> None:
        data = event["data"] or {}
        match event["type"]:
            case "metrics":
                self._show_metrics(data)
            case "progress":
                stage = str(data.get("stage", ""))
                self._move(stage, data.get("done"), data.get("total"), _run_facts(data))
            case _:
                style = {"warn": "yellow", "error": "red"}.get(event["level"], "dim")
                self.progress.console.print(Text(event["message"], style=style))

    def end(self, job: Json) -> None:
        """Leave the bar as the job ended: full only if its model was released."""
        word = "review" if job["status"] == "running" else str(job["status"])
        self.progress.update(self.task, description=word, facts="")
        if job["status"] == "succeeded":
            self.progress.update(self.task, completed=1, total=1)

    def rest(self) -> None:
        """Say that the job is paused; events move the bar on once it is resumed."""
        self.progress.update(self.task, description="paused", facts="")

    def _show_metrics(self, data: Json) -> None:
        loss, canary = data.get("train_loss"), data.get("canary_loss")
        facts = [] if loss is None else [f"loss {loss:.3f}"]
        if canary is not None:
            self.progress.update(self.task, canary=f"canary {canary:.3f}")
        stage = str(data.get("stage") or "train")
        self._move(stage, data.get("step"), data.get("total_steps"), ", ".join(facts))

    def _move(self, stage: str, done: float | None, total: float | None, facts: str) -> None:
        self.progress.update(self.task, description=stage, completed=done, total=total, facts=facts)


def _run_facts(data: Json) -> str:
    """Say what a simulated customer's run came to, where the progress is of such runs."""
    score = data.get("harmful_score")
    return "" if score is None else f"{data['customer']}, seed {data['seed']}: HS {score:.1f}%"


def follow(connection: Connection, path: str) -> Json:
    """Show a job's progress; give the job as it was at the end."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]} {task.fields[canary]}"),
    )
    with Progress(*columns, console=console()) as progress:
        watch = _Watch(progress, progress.add_task("queued", total=None, facts="", canary=""))
        seen: str | None = None
        while True:
            # The job first: whatever ended it is then among the events.
            job = connection.get(path)
            for event in _new_events(connection, path, seen):
                watch.tell(event)
                seen = str(event["id"])
            if job["status"] in ENDED or (job["status"] == "running" and job["stage"] in REVIEWS):
                watch.end(job)
                return job
            if job["state"] == "paused":
                watch.rest()
            time.sleep(POLL_SECONDS)


def _new_events(connection: Connection, path: str, seen: str | None) -> list[Json]:
    """Give the events after the last one seen, oldest first."""
    found: list[Json] = []
    after: str | None = None
    while True:
        page = connection.get(f"{path}/events", limit=PAGE, after=after)
        for event in page["data"]:
            if event["id"] == seen:
                return found[::-1]
            found.append(event)
        if not page["has_more"]:
            return found[::-1]
        after = str(page["data"][-1]["id"])
