"""`titer jobs` and `titer align`: jobs of every kind."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import Connection, Json, connected, fail
from api.cli.follow import follow
from api.cli.output import (
    AsJson,
    console,
    gate,
    moment,
    print_facts,
    print_json,
    print_table,
    safety_facts,
    share,
    status,
)

app = typer.Typer(no_args_is_help=True, help="Start, watch and cancel jobs.")

FINETUNE, ALIGN = "/fine_tuning/jobs", "/alignment/jobs"
CERTIFY, EVALUATE = "/certification/jobs", "/evaluation/jobs"
KINDS = (FINETUNE, ALIGN, CERTIFY, EVALUATE)
JobId = Annotated[str, typer.Argument(help="A job of any kind.")]
Labels = Annotated[
    list[str] | None, typer.Option("--metadata", help="A label, as key=value; may be repeated.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Watch the job until it ends.")]


class TuningMethod(StrEnum):
    """How a model is tuned."""

    SUPERVISED = "supervised"
    DPO = "dpo"


@app.command()
def create(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A released aligned base, or a tuned model of yours.")],
    training_file: Annotated[str, typer.Option(help="A file's id, or a local JSON Lines file.")],
    validation_file: Annotated[str | None, typer.Option(help="The same, for measuring.")] = None,
    method: Annotated[
        TuningMethod, typer.Option(help="Learn from answers, or (dpo) from pairs of them.")
    ] = TuningMethod.SUPERVISED,
    suffix: Annotated[str | None, typer.Option(help="A word in the new model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step sees.")] = None,
    learning_rate_multiplier: Annotated[
        float | None, typer.Option(help="Multiple of the service's own learning rate.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Of dpo: the smaller, the further the model may go from its beginning."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the run repeatable.")] = None,
    metadata: Labels = None,
    screen: Annotated[
        bool, typer.Option("--screen", help="Have the judges read every training row first.")
    ] = False,
    evaluate_checkpoints: Annotated[
        bool,
        typer.Option(
            "--evaluate-checkpoints", help="Have the gate decide on the weights of each epoch, too."
        ),
    ] = False,
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model."""
    connection = connected(context)
    if beta is not None and method != TuningMethod.DPO:
        fail("--beta is a parameter of --method dpo.")
    chosen = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
        "beta": beta,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    body: Json = {
        "model": model,
        "training_file": _file_id(connection, training_file),
        "validation_file": _file_id(connection, validation_file) if validation_file else None,
        "suffix": suffix,
        "seed": seed,
        "metadata": _labels(metadata) if metadata else None,
        "screen": screen or None,
        "evaluate_checkpoints": evaluate_checkpoints or None,
        "method": {"type": method.value, method.value: {"hyperparameters": given}},
    }
    job = connection.post(FINETUNE, body)
    _conclude(connection, FINETUNE, job, is_followed=is_followed, as_json=as_json)


def align(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="A registered base model.")],
    method: Annotated[
        str, typer.Option(help="sft, vaccine, repnoise, booster, booster+vaccine or titer.")
    ] = "titer",
    preset: Annotated[
        str, typer.Option(help="What is left open comes from it: service, reference or modern.")
    ] = "service",
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Booster: weight of the penalty.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Booster: length of the simulated harmful step.")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="Vaccine: norm of the shift.")] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other field of the method; may be repeated."
        ),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(help="What is trained: adapter or full.")
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="Draw harmful rows equally often by category or by source; or none."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Alignment rows a step sees.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's peak rate.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the aligned version.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the run repeatable.")] = None,
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Align a base: harden it against harmful fine-tuning."""
    connection = connected(context)
    rule = {"name": method, "lambda": lambda_, "alpha": alpha, "rho": rho, **_assigned(other or [])}
    chosen: Json = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "parameters": parameters,
        "balance": balance,
        "lora": None if rank is None else {"r": rank},
    }
    body: Json = {
        "model": base,
        "method": {key: value for key, value in rule.items() if value is not None},
        "hyperparameters": {key: value for key, value in chosen.items() if value is not None},
        "preset": preset,
        "name": name,
        "seed": seed,
    }
    job = connection.post(ALIGN, body)
    _conclude(connection, ALIGN, job, is_followed=is_followed, as_json=as_json)


def _assigned(assignments: Sequence[str]) -> Json:
    """Read NAME=VALUE; a value is JSON where it can be (0.5, true, null), else text."""
    read: Json = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE", param_hint="--set")
        try:
            read[name] = json.loads(value)
        except json.JSONDecodeError:
            read[name] = value
    return read


@app.command("list")
def list_jobs(
    context: typer.Context,
    alignment: Annotated[bool, typer.Option("--alignment", help="Alignment jobs.")] = False,
    certification: Annotated[
        bool, typer.Option("--certification", help="Certification jobs.")
    ] = False,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="Evaluation jobs.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    metadata: Labels = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first. Labels select fine-tuning jobs that carry all of them."""
    connection = connected(context)
    wanted = ((ALIGN, alignment), (CERTIFY, certification), (EVALUATE, evaluation))
    kind = next((kind for kind, is_wanted in wanted if is_wanted), FINETUNE)
    if metadata and kind != FINETUNE:
        fail("Only fine-tuning jobs have labels.")
    labels = {f"metadata[{key}]": value for key, value in _labels(metadata or []).items()}
    answer = connection.get(kind, limit=limit, **labels)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("JOB", "STATUS", "MODEL", "RESULT", "GATE", "HS", "CREATED"),
        (
            (
                job["id"],
                status(job),
                job["model"],
                job["fine_tuned_model"] or job["result_model"],
                gate(job["safety"]["gate"]) if job["safety"] else "",
                f"{job['safety']['harmful_score']['percent']:.1f}%" if job["safety"] else "",
                moment(job["created_at"]),
            )
            for job in answer["data"]
        ),
    )


@app.command()
def show(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    connection = connected(context)
    job = connection.get(_path(connection, job_id))
    print_json(job) if as_json else _print_job(job)


@app.command()
def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job that has not ended."""
    _change(context, job_id, "cancel", as_json=as_json)


@app.command()
def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Pause a job; a running one stops at its next step and lets go of its GPU."""
    _change(context, job_id, "pause", as_json=as_json)


@app.command()
def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Go on with a paused job where it stopped."""
    _change(context, job_id, "resume", as_json=as_json)


def _change(context: typer.Context, job_id: str, verb: str, *, as_json: bool) -> None:
    connection = connected(context)
    job = connection.post(f"{_path(connection, job_id)}/{verb}")
    print_json(job) if as_json else console().print(status(job))


@app.command()
def checkpoints(
    context: typer.Context,
    job_id: JobId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List where a fine-tuning job stood at the end of each epoch, newest first."""
    connection = connected(context)
    answer = connection.get(f"{_path(connection, job_id)}/checkpoints", limit=limit)
    if as_json:
        print_json(answer)
        return
    measured = ("train_loss", "full_valid_loss", "canary_loss")
    print_table(
        ("STEP", "TRAIN LOSS", "VALID LOSS", "CANARY", "HS", "FA", "GATE", "MODEL"),
        (
            (
                str(found["step_number"]),
                *(_number(found["metrics"].get(name), 4) for name in measured),
                _number(found["metrics"].get("harmful_score"), 1, "%"),
                _number(found["metrics"].get("fine_tuning_accuracy"), 1, "%"),
                gate(found["gate"] or ""),
                found["fine_tuned_model_checkpoint"],
            )
            for found in answer["data"]
        ),
    )


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


@app.command("follow")
def follow_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Watch a job until it ends; the exit status says whether its model was released."""
    connection = connected(context)
    watch(connection, _path(connection, job_id), as_json=as_json)


def _conclude(
    connection: Connection, kind: str, job: Json, *, is_followed: bool, as_json: bool
) -> None:
    if as_json:
        print_json(job)
    else:
        console().print(str(job["id"]))
    if is_followed:
        watch(connection, f"{kind}/{job['id']}")


def watch(connection: Connection, path: str, *, as_json: bool = False) -> None:
    """Watch a job until it ends, show it, and end with a status for scripts if it did not end well."""
    job = follow(connection, path)
    print_json(job) if as_json else _print_job(job)
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _path(connection: Connection, job_id: str) -> str:
    """Find out of which kind a job is: its id does not tell."""
    if not re.fullmatch(r"[\w-]+", job_id):
        fail(f"{job_id!r} is not a job's id.")
    return next(
        (path for path in (f"{kind}/{job_id}" for kind in KINDS) if connection.has(path)),
        f"{FINETUNE}/{job_id}",
    )


def _file_id(connection: Connection, given: str) -> str:
    path = Path(given)
    return str(connection.upload(path, "fine-tune")["id"]) if path.is_file() else given


def _labels(given: list[str]) -> dict[str, str]:
    labels = dict(label.partition("=")[::2] for label in given)
    if not all(labels) or any("=" not in label for label in given):
        fail("Write labels as key=value.")
    return labels


def _print_job(job: Json) -> None:
    safety, data_risk = job["safety"] or {}, job["data_risk"] or {}
    error = job["error"] or {}
    reasons = " ".join(safety.get("reasons", []))
    # A blocked model's error says them itself.
    is_said = reasons in error.get("message", "")
    numbers = {**job["hyperparameters"], **(job["method"].get("alignment") or {})}
    print_facts(
        [
            ("job", job["id"]),
            ("kind", job["kind"]),
            ("status", status(job)),
            ("model", job["model"]),
            ("result", job["fine_tuned_model"] or job["result_model"]),
            ("training file", job["training_file"]),
            ("validation file", job["validation_file"]),
            ("result file", ", ".join(job["result_files"])),
            ("parameters", ", ".join(f"{name} {value}" for name, value in numbers.items())),
            ("seed", str(job["seed"])),
            ("created", moment(job["created_at"])),
            ("finished", moment(job["finished_at"])),
            ("rows flagged", share(data_risk.get("harmful_share"))),
            ("data review", (data_risk.get("review") or {}).get("status")),
            ("gate", gate(safety["gate"]) if safety else None),
            ("reasons", None if is_said else reasons),
            *safety_facts(safety),
            ("error", error.get("message")),
        ]
    )
