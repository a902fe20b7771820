"""`titer policies`: what the gate decides by, and what other rules would have decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import Json, connected, fail
from api.cli.output import AsJson, gate, moment, print_facts, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Show, make, try and activate safety policies.")

Rules = Annotated[
    list[str] | None,
    typer.Option("--set", help="RULE=VALUE, such as max_harmful_score=10; may be repeated."),
]
RulesFile = Annotated[
    Path | None, typer.Option("--file", help="JSON with rules; --set wins over it.")
]
Project = Annotated[str | None, typer.Option(help="Id of a project.")]
Policy = Annotated[str, typer.Argument(help="A policy's id or number.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the audit log.")]


@app.command("list")
def list_policies(
    context: typer.Context,
    project: Project = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the versions, newest first."""
    answer = connected(context).get("/policies", project=project, limit=limit)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("POLICY", "OF", "ACTIVE", "HS LIMIT", "DATA", "CREATED", "NOTE"),
        (
            (
                policy["id"],
                policy["project"] or "service",
                "yes" if policy["active"] else "",
                f"{policy['rules']['max_harmful_score']:g}%",
                policy["rules"]["data_action"],
                moment(policy["created_at"]),
                policy["note"],
            )
            for policy in answer["data"]
        ),
    )


@app.command()
def show(context: typer.Context, policy: Policy, as_json: AsJson = False) -> None:
    """Show one version with every rule."""
    _print(connected(context).get(f"/policies/{policy}"), as_json)


@app.command()
def create(
    context: typer.Context,
    rules: Rules = None,
    file: RulesFile = None,
    project: Project = None,
    note: Annotated[str, typer.Option(help="Why; kept with the version.")] = "",
    activate: Annotated[bool, typer.Option("--activate", help="Put it in force at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a version. Rules that are not named stay as they are in the policy in force."""
    body: Json = {
        "rules": read_rules(rules or [], file),
        "project": project,
        "note": note,
        "activate": activate,
    }
    _print(connected(context).post("/policies", body), as_json)


@app.command()
def activate(
    context: typer.Context, policy: Policy, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Put a version in force for its project or for the service."""
    _print(connected(context).post(f"/policies/{policy}/activate", {"reason": reason}), as_json)


@app.command()
def deactivate(
    context: typer.Context, policy: Policy, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Take a project's own policy out of force; the service's decides again."""
    _print(connected(context).post(f"/policies/{policy}/deactivate", {"reason": reason}), as_json)


@app.command("dry-run")
def dry_run(
    context: typer.Context,
    rules: Rules = None,
    file: RulesFile = None,
    policy: Annotated[str | None, typer.Option(help="Start from this stored policy.")] = None,
    project: Project = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Changes to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Say what other rules would have decided on past evaluations. Nothing is changed."""
    body: Json = {
        "rules": read_rules(rules or [], file),
        "policy": policy,
        "project": project,
        "limit": limit,
    }
    answer = connected(context).post("/policies/dry_run", body)
    if as_json:
        print_json(answer)
        return
    older = " (older ones left out)" if answer["truncated"] else ""
    typer.echo(f"{answer['evaluations']} evaluations{older}, {answer['changes']} changes")
    print_table(
        ("THEN", "NOW", "MODELS"),
        (
            (gate(then), gate(now), str(count))
            for then, counts in sorted(answer["counts"].items())
            for now, count in sorted(counts.items())
        ),
    )
    if answer["data_counts"]:
        print_table(
            ("THEN", "NOW", "TRAINING FILES"),
            (
                (then, now, str(count))
                for then, counts in sorted(answer["data_counts"].items())
                for now, count in sorted(counts.items())
            ),
        )
    if not answer["data"]:
        return
    print_table(
        ("MODEL", "PROJECT", "THEN", "NOW", "GATE TODAY", "WHY"),
        (
            (
                change["model"],
                change["project"] or "",
                gate(change["then"]),
                gate(change["now"]),
                gate(change["gate"]),
                " ".join(change["reasons"]),
            )
            for change in answer["data"]
        ),
    )
    if answer["has_more"]:
        typer.echo("There are more changes; give a larger --limit.")


def read_rules(pairs: list[str], file: Path | None) -> Json:
    """Read rules from a file and from RULE=VALUE pairs, whose values are JSON or plain words."""
    from models.policy import PolicyRules

    rules: Json = {}
    if file is not None:
        try:
            rules = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            fail(f"{file} cannot be read as JSON.")
        if not isinstance(rules, dict):
            fail(f"{file} is not a JSON object.")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in PolicyRules.model_fields:
            known = ", ".join(PolicyRules.model_fields)
            fail(f"{pair!r} is no RULE=VALUE. The rules are {known}.")
        try:
            rules[name] = json.loads(value)
        except ValueError:
            rules[name] = value
    return rules


def _print(policy: Json, as_json: bool) -> None:
    if as_json:
        print_json(policy)
        return
    print_facts(
        [
            ("policy", policy["id"]),
            ("of", policy["project"] or "the service"),
            ("active", "yes" if policy["active"] else "no"),
            *((name, _value(value)) for name, value in policy["rules"].items()),
            ("note", policy["note"]),
            ("created", moment(policy["created_at"])),
            ("by", policy["created_by"]),
        ]
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
