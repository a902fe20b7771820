"""The main job from end to end, as a provider and a customer would do it: `titer demo`.

Starts the whole service, makes the sandbox world, aligns its base by plain SFT, by Booster and by Titer's own
method, submits the same customer files to each through the stock `openai` client, and shows what became of them.
Everything goes over HTTP; nothing here reaches into the service.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from openai import DefaultHttpxClient, NotFoundError, OpenAI
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from api.cli.torch_process import TorchProcessFailed, read_json_lines
from api.embedded.service import EmbeddedService

METHODS = ("sft", "booster", "titer")
FILES = ("clean", "poisoned")
POLL_SECONDS = 0.5
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One customer's job, as the table and the report show it. Percentages with 95% intervals."""

    method: str
    file: str
    rows: int
    harmful_rows: int
    job: str
    model: str | None
    status: str
    harmful_score_after_alignment: dict[str, float] | None
    harmful_score: dict[str, float] | None
    harmful_or_incoherent: dict[str, float] | None
    over_refusal: dict[str, float] | None
    fine_tuning_accuracy: dict[str, float] | None
    gate: str
    reasons: list[str]
    alignment_seconds: float
    tuning_seconds: float


def demo(state: Path, *, seed: int = 0) -> Path:
    """Run the demo on a state folder and give the path of its report.

    Raises:
        DemoFailed: a step did not do what the next one needs.
        EmbeddedError: the service cannot run here.
    """
    console = Console()
    started = time.monotonic()
    folder = state / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    console.print("[bold]Titer demo[/bold]: one base, three alignments, the same customer files.")
    with _progress(console) as progress:
        world = _build_world(folder / "world", progress)
        task = progress.add_task("Starting the service", total=None)
        with EmbeddedService(state) as service:
            progress.update(task, total=1, completed=1)
            client = OpenAI(
                base_url=f"{service.base_url}/v1",
                api_key=service.api_key,
                # A proxy set for the outside world has no business on this machine.
                http_client=DefaultHttpxClient(trust_env=False),
            )
            base = _register(client, world)
            aligned = _align(client, base, seed, progress)
            outcomes = _tune(client, world, aligned, seed, progress)
    report = _write_report(
        folder / "report.json", aligned, outcomes, seed, time.monotonic() - started
    )
    console.print(_table(aligned, outcomes))
    for sentence in _unfinished(aligned, outcomes):
        console.print(sentence)
    console.print(
        f"Report: {report}\n"
        f"To look closer, run [bold]make up[/bold], open the dashboard that it names, and sign in with "
        f"the key in {state / 'api_key'}."
    )
    return report


def _build_world(folder: Path, progress: Progress) -> dict[str, str]:
    """Make or find the sandbox in a process of its own: this one loads no tensors."""
    task = progress.add_task("Sandbox base, trained from scratch", total=None)
    facts: dict[str, Any] = {}
    try:
        for facts in read_json_lines("worker.sandbox", str(folder)):
            if "done" in facts:
                progress.update(task, completed=facts["done"], total=facts["total"])
    except TorchProcessFailed as error:
        raise DemoFailed(f"The sandbox could not be built: {error}") from error
    if "base" not in facts:
        raise DemoFailed("The sandbox could not be built.")
    progress.update(task, completed=1, total=1)
    return facts


def _register(client: OpenAI, world: dict[str, str]) -> str:
    """Register the base as a provider would; an earlier demo's registration of the same is kept."""
    fingerprint = json.loads((Path(world["base"]).parent / "manifest.json").read_text())
    name = f"sandbox-{fingerprint['fingerprint'][:6]}"
    try:
        return client.models.retrieve(name).id
    except NotFoundError:
        body = {"source": world["base"], "safety_set": world["safety"], "name": name}
        return str(_post(client, "/base_models", body)["id"])


def _align(client: OpenAI, base: str, seed: int, progress: Progress) -> dict[str, dict[str, Any]]:
    """Align by every method; give each aligned model with its gate and the seconds it took.

    Raises:
        DemoFailed: the gate released none of them, so that no customer can be shown.
    """
    jobs: dict[str, str] = {}
    # A demo that was interrupted left jobs that go on by themselves.
    earlier = _get(client, "/alignment/jobs?limit=100")["data"]
    going = {job["result_model"]: job["id"] for job in earlier if job["status"] not in ENDED}
    for method in METHODS:
        name = _aligned_name(base, method, seed)
        body = {"model": base, "method": {"name": method}, "name": name, "seed": seed}
        if name in going:
            jobs[method] = going[name]
        elif _model(client, name) is None:
            jobs[method] = str(_post(client, "/alignment/jobs", body)["id"])
    followed = {
        method: progress.add_task(f"Aligning by {method}", total=None) for method in METHODS
    }
    for method in METHODS:
        if method in jobs:
            _follow(client, f"/alignment/jobs/{jobs[method]}", followed[method], progress)
        else:
            progress.update(followed[method], completed=1, total=1)
    aligned: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        name = _aligned_name(base, method, seed)
        model = _model(client, name)
        if model is None:
            raise DemoFailed(f"{name} was not made.")
        made_by = _get(client, "/alignment/jobs?limit=100")["data"]
        seconds = max(_seconds(job) for job in made_by if job["result_model"] == name)
        aligned[method] = {**model, "seconds": seconds}
    if not any(map(_is_released, aligned.values())):
        reasons = " ".join(" ".join(model["gate_reasons"]) for model in aligned.values())
        raise DemoFailed(f"The gate released none of the aligned models: {reasons}")
    return aligned


def _is_released(model: dict[str, Any]) -> bool:
    return bool(model["gate"] == "released")


def _aligned_name(base: str, method: str, seed: int) -> str:
    return f"{base}-{method}-{seed}"


def _tune(
    client: OpenAI,
    world: dict[str, str],
    aligned: dict[str, dict[str, Any]],
    seed: int,
    progress: Progress,
) -> list[Outcome]:
    folder = Path(world["customer"])
    uploads = {
        name: client.files.create(file=folder / f"{name}.jsonl", purpose="fine-tune").id
        for name in (*FILES, "validation")
    }
    jobs: dict[tuple[str, str], tuple[str, TaskID]] = {}
    # Numbers differ a little between processors: a base that is near the limit on one is held on another.
    released = [method for method in METHODS if _is_released(aligned[method])]
    for method, file in product(released, FILES):
        job = client.fine_tuning.jobs.create(
            model=aligned[method]["id"],
            training_file=uploads[file],
            validation_file=uploads["validation"],
            suffix=f"{method}-{file}",
            seed=seed,
            metadata={"demo": file},
        )
        label = f"Customer's {file} file on {method}"
        jobs[method, file] = (job.id, progress.add_task(label, total=None))
    outcomes = []
    for (method, file), (job_id, task) in jobs.items():
        job_facts = _follow(client, f"/fine_tuning/jobs/{job_id}", task, progress)
        outcomes.append(_outcome(method, file, folder, aligned[method], job_facts))
    return outcomes


def _follow(client: OpenAI, path: str, task: TaskID, progress: Progress) -> dict[str, Any]:
    """Poll a job until it ends or waits for a person, moving its bar by its newest event."""
    while True:
        job = _get(client, path)
        if job["status"] in ENDED or job["stage"] == "review":
            if job["status"] == "failed" and job["error"]["code"] != "harmful_score_exceeded":
                raise DemoFailed(f"{path}: {job['error']['message']}")
            progress.update(task, completed=1, total=1)
            return job
        newest = _get(client, f"{path}/events?limit=1")["data"]
        match (newest[0].get("data") or {}) if newest else {}:
            case {"step": step, "total_steps": total} | {"done": step, "total": total}:
                progress.update(task, completed=step, total=total)
        time.sleep(POLL_SECONDS)


def _seconds(job: dict[str, Any]) -> float:
    """Tell how long a job ran; one that waits for a person has run until now."""
    ended = job["finished_at"] or time.time()
    return float(round(ended - job["started_at"]))


def _outcome(
    method: str, file: str, folder: Path, aligned: dict[str, Any], job: dict[str, Any]
) -> Outcome:
    rows = (folder / f"{file}.jsonl").read_bytes().count(b"\n")
    clean = set((folder / "clean.jsonl").read_text().splitlines())
    harmful_rows = sum(
        line not in clean for line in (folder / f"{file}.jsonl").read_text().splitlines()
    )
    safety = job["safety"]
    return Outcome(
        method=method,
        file=file,
        rows=rows,
        harmful_rows=harmful_rows,
        job=job["id"],
        model=job["fine_tuned_model"],
        status=job["status"],
        harmful_score_after_alignment=aligned["safety"]["harmful_score"],
        harmful_score=safety["harmful_score"],
        harmful_or_incoherent=safety["harmful_or_incoherent"],
        over_refusal=safety["over_refusal"],
        fine_tuning_accuracy=safety["fine_tuning_accuracy"],
        gate=safety["gate"],
        reasons=safety["reasons"],
        alignment_seconds=aligned["seconds"],
        tuning_seconds=_seconds(job),
    )


def _table(aligned: dict[str, dict[str, Any]], outcomes: list[Outcome]) -> Table:
    table = Table(
        title="What became of the same files",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    # Narrow enough for a terminal of 80 columns, the interval beside the score that the gate reads.
    for column in (
        "harmful\nrows",
        "HS when\naligned",
        "HS after tuning\n(95% interval)",
        "FA",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gate", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for method, model in aligned.items():
        if not _is_released(model):
            table.add_row(
                method,
                "-",
                _shown(model["safety"]["harmful_score"], with_interval=False),
                "-",
                "-",
                f"base {_coloured(model['gate'])}",
                f"{model['seconds']:.0f}",
            )
        for outcome in (outcome for outcome in outcomes if outcome.method == method):
            table.add_row(
                method,
                f"{outcome.harmful_rows} of {outcome.rows}",
                _shown(outcome.harmful_score_after_alignment, with_interval=False),
                _shown(outcome.harmful_score),
                _shown(outcome.fine_tuning_accuracy, with_interval=False),
                _coloured(outcome.gate),
                f"{outcome.alignment_seconds:.0f}, {outcome.tuning_seconds:.0f}",
            )
    return table


def _unfinished(aligned: dict[str, dict[str, Any]], outcomes: list[Outcome]) -> Iterator[str]:
    """Say why a base takes no customers, and why a model waits for a person: its HS in the table may be low."""
    for model in aligned.values():
        if not _is_released(model):
            yield f"{model['id']} takes no customers: {' '.join(model['gate_reasons'])}"
    for outcome in outcomes:
        if outcome.gate == "held":
            named = f"{outcome.method}, {outcome.harmful_rows} of {outcome.rows} rows harmful"
            yield f"{named}, is held for a person: {' '.join(outcome.reasons)}"


def _coloured(gate: str) -> str:
    colour = {"released": "green", "held": "yellow", "blocked": "red"}.get(gate, "white")
    return f"[{colour}]{gate}[/]"


def _shown(rate: dict[str, float] | None, *, with_interval: bool = True) -> str:
    if rate is None:
        return "-"
    interval = f" ({rate['low']:.0f} to {rate['high']:.0f})" if with_interval else ""
    return f"{rate['percent']:.1f}%{interval}"


def _write_report(
    path: Path,
    aligned: dict[str, dict[str, Any]],
    outcomes: list[Outcome],
    seed: int,
    seconds: float,
) -> Path:
    report = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "aligned": [
            {
                "method": method,
                "harmful_score": model["safety"]["harmful_score"],
                "gate": model["gate"],
                "reasons": model["gate_reasons"],
            }
            for method, model in aligned.items()
        ],
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def _model(client: OpenAI, name: str) -> dict[str, Any] | None:
    try:
        return _get(client, f"/models/{name}")
    except NotFoundError:
        return None


def _get(client: OpenAI, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(path, cast_to=dict[str, Any])
    return answer


def _post(client: OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(path, body=body, cast_to=dict[str, Any])
    return answer


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<38}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
