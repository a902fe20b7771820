"""`titer reviews`: the queue of held data and models, for reviewers."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.connection import Json, connected
from api.cli.output import (
    AsJson,
    moment,
    print_facts,
    print_json,
    print_table,
    safety_facts,
    share,
)

app = typer.Typer(
    no_args_is_help=True, help="See and decide on the data and models that wait for a person."
)

Review = Annotated[str, typer.Argument(help="A review's id, which is its job's.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the job's log and in the audit log.")]


@app.command("list")
def list_reviews(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the data and models that wait for a decision, oldest first."""
    answer = connected(context).get("/reviews", limit=limit)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("REVIEW", "MODEL", "PROJECT", "CAUSE", "FLAGGED", "HS", "RISK", "WAITS SINCE", "UNTIL"),
        (
            (
                review["id"],
                review["model"],
                review["project"]["name"],
                review["cause"],
                _percent((review["data_risk"] or {}).get("harmful_share")),
                _percent((review["safety"] or {}).get("harmful_score")),
                f"{review['risk']['score']:.1f}" if review["risk"] else "",
                moment(review["created_at"]),
                moment(review["expires_at"]),
            )
            for review in answer["data"]
        ),
    )


@app.command()
def show(context: typer.Context, review: Review, as_json: AsJson = False) -> None:
    """Show one review with its evidence."""
    _print(connected(context).get(f"/reviews/{review}"), as_json)


@app.command()
def release(
    context: typer.Context, review: Review, reason: Reason, as_json: AsJson = False
) -> None:
    """Release held data, to be trained on, or a held model."""
    _decide(context, review, "release", reason, as_json)


@app.command()
def reject(context: typer.Context, review: Review, reason: Reason, as_json: AsJson = False) -> None:
    """Reject held data, or block a held model."""
    _decide(context, review, "reject", reason, as_json)


@app.command()
def reevaluate(
    context: typer.Context, review: Review, reason: Reason, as_json: AsJson = False
) -> None:
    """Have a kept model measured again, without training it again."""
    _decide(context, review, "reevaluate", reason, as_json)


def _percent(rate: Json | None) -> str:
    return f"{rate['percent']:.1f}%" if rate else ""


def _decide(context: typer.Context, review: str, verb: str, reason: str, as_json: bool) -> None:
    _print(connected(context).post(f"/reviews/{review}/{verb}", {"reason": reason}), as_json)


def _print(review: Json, as_json: bool) -> None:
    if as_json:
        print_json(review)
        return
    appeal, risk = review["appeal"] or {}, review["risk"] or {}
    print_facts(
        [
            ("review", review["id"]),
            ("status", f"{review['status']} (job {review['job_status']})"),
            ("cause", review["cause"]),
            ("model", review["model"]),
            ("project", f"{review['project']['name']} ({review['project']['id']})"),
            ("reasons", " ".join(review["reasons"])),
            ("policy", f"policy-{review['policy_version']}" if review["policy_version"] else None),
            ("approvals", f"{len(review['approvals'])} of {review['approvals_needed']}"),
            ("rows flagged", share((review["data_risk"] or {}).get("harmful_share"))),
            *safety_facts(review["safety"] or {}),
            (
                "risk",
                f"{risk['score']:.1f} ({risk['attempts']} attempts of {risk['models']} models, "
                f"excess {risk['excess_points']:.1f}, drift {risk['drift_points']:.1f})"
                if risk
                else None,
            ),
            ("appeal", appeal.get("text")),
            ("waits since", moment(review["created_at"])),
            ("until", moment(review["expires_at"])),
        ]
    )
