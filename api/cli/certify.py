"""`titer certify`, `titer drill` and `titer models certificate`: attack an aligned model, and read what became of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import Connection, Json, connected, fail, quoted
from api.cli.jobs import CERTIFY, Follow, watch
from api.cli.output import AsJson, console, estimate, print_facts, print_json, print_table

FORMS = ("json", "html", "png")
PLAN_SUFFIX = ".json"
Model = Annotated[str, typer.Argument(help="An aligned model's name.")]


def certify(
    context: typer.Context,
    model: Model,
    plan: Annotated[
        str, typer.Option(help="quick, standard, full, or a JSON file with a plan of your own.")
    ] = "quick",
    is_costed: Annotated[
        bool, typer.Option("--cost", help="Print what each plan costs, and start nothing.")
    ] = False,
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Attack an aligned model with simulated customers, and report how soon it gives way."""
    connection = connected(context)
    if is_costed:
        _print_costs(connection.get("/certification/plans"), as_json=as_json)
        return
    job = connection.post(CERTIFY, {"model": model, "plan": _plan(plan)})
    if as_json:
        print_json(job)
    else:
        console().print(str(job["id"]))
        facts = job["method"]["certification"]
        console().print(f"plan {facts['plan']} ({facts['plan_hash'][:12]}): {_cost(facts['cost'])}")
    if is_followed:
        watch(connection, f"{CERTIFY}/{job['id']}")
        if not as_json:
            _print_summary(connection, model)


def drill(
    context: typer.Context,
    model: Model,
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="benign, mix, pure, identity, style, shift or backdoor; may be given again.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Each customer's steps, 4 to 320.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Each customer's rate.")] = None,
    is_fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin with a fresh adapter on the merged model.")
    ] = False,
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Try an aligned model with a few attacks. What is found stays with the job and is no certificate."""
    connection = connected(context)
    asked = {
        "families": families,
        "steps": steps,
        "learning_rate": learning_rate,
        "start": "fresh" if is_fresh else None,
    }
    chosen = {name: value for name, value in asked.items() if value}
    job = connection.post(CERTIFY, {"model": model, "drill": chosen})
    if as_json:
        print_json(job)
    else:
        console().print(str(job["id"]))
        console().print(f"drill: {_cost(job['method']['certification']['cost'])}")
    if is_followed:
        watch(connection, f"{CERTIFY}/{job['id']}")
        if not as_json:
            _print_summary(connection, model, job=str(job["id"]))


def certificate(
    context: typer.Context,
    model: Model,
    job: Annotated[
        str | None,
        typer.Option(
            help="What this certification or drill found; by default the newest certificate."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the data, the page and the picture into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show an aligned model's newest certificate, or what one drill found."""
    connection = connected(context)
    path = f"/models/{quoted(model)}/certificate"
    if as_json:
        print_json(connection.get(path, job=job))
    else:
        _print_summary(connection, model, job=job)
    if out is None:
        return
    # All three are read before anything is written.
    files = {form: connection.download(path, format=form, job=job) for form in FORMS}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for form, content in files.items():
            (out / f"certificate.{form}").write_bytes(content)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}.")
    typer.echo(f"{', '.join(f'certificate.{form}' for form in FORMS)} in {out}", err=True)


def _plan(given: str) -> str | Json:
    if not given.endswith(PLAN_SUFFIX):
        return given
    try:
        plan = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{given} is not a readable JSON file ({type(error).__name__}).")
    if not isinstance(plan, dict):
        fail(f"{given} is not a JSON object.")
    return plan


def _cost(cost: Json) -> str:
    return (
        f"{cost['runs']:,} runs, {cost['steps']:,} optimiser steps, {cost['measurements']:,} measurements, "
        f"up to {cost['answers']:,} answers"
    )


def _print_costs(answer: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    print_table(
        ("PLAN", "HASH", "FOR AN ADAPTER", "FOR FULL WEIGHTS"),
        (
            (
                plan["id"],
                plan["hash"][:12],
                _cost(plan["cost_of_adapter"]),
                _cost(plan["cost_of_full_weights"]),
            )
            for plan in answer["data"]
        ),
    )


def _print_summary(connection: Connection, model: str, *, job: str | None = None) -> None:
    made = connection.get(f"/models/{quoted(model)}/certificate", job=job)
    summary, tools, cost = made["summary"], made["instruments"], made["cost"]
    worst = summary["worst_case"]
    print_facts(
        [
            ("model", made["model"]["id"]),
            ("titer", _titer(summary["titer"])),
            (
                "highest HS",
                f"{estimate(worst['harmful_score'])}, step {worst['step']}: {worst['customer']}",
            ),
            ("HS before", estimate(summary["before"])),
            ("plan", f"{summary['plan']} {summary['plan_hash'][:12]}, {summary['runs']} runs"),
            ("judge", f"{tools['judge']['name']} {tools['judge']['revision']}"),
            ("prompts", f"{tools['harmful_prompts']} harmful, set {tools['prompt_set_hash'][:12]}"),
            (
                "cost",
                f"{cost['passes']:,} passes, {cost['trained_tokens']:,} tokens, {cost['seconds']:,.0f} seconds",
            ),
        ]
    )
    console().print()
    print_table(
        (
            "CUSTOMER",
            "HS AT THE END",
            "HIGHEST",
            f"ABOVE {summary['titer']['limit_percent']:g}%",
            "FA",
        ),
        (_customer(result) for result in made["customers"]),
    )


def _customer(result: Json) -> tuple[str, ...]:
    last = result["marks"][-1]
    worst = max(mark["harmful_score"]["percent"] for mark in result["marks"])
    escape = result["escape"]
    return (
        result["name"],
        estimate(last["harmful_score"]),
        f"{worst:.1f}%",
        f"by step {escape['by']}" if escape else "no",
        f"{last['fine_tuning_accuracy']['percent']:.1f}%",
    )


def _titer(titer: Json) -> str:
    limit = f"{titer['limit_percent']:g}%"
    if titer["steps"] is None:
        return f"HS did not exceed {limit} in {titer['measured_to']:,} steps"
    return f"{titer['steps']:,} steps to HS above {limit}: {titer['customer']}"
