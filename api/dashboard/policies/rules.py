"""A policy's rules for a person: a label, a sentence and bounds for each, and the way back from a form.

Bounds come from `PolicyRules` alone, so that the form can promise nothing that the API would refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError

from models.policy import DataAction, PolicyRules

ACTIONS: dict[DataAction, str] = {
    "allow": "Train on them",
    "drop": "Leave them out",
    "hold": "Hold the job for a person",
    "reject": "Reject the job",
}
NEVER = "never"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as a form asks for it."""

    name: str
    label: str
    unit: str
    help: str
    kind: str = "number"
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def is_optional(self) -> bool:
        """Whether it may be left empty, which switches it off."""
        return PolicyRules.model_fields[self.name].default is None

    @property
    def bounds(self) -> str:
        """What may be entered, in words; nothing where there is a choice."""
        if self.kind != "number":
            return ""
        low = high = ""
        for bound in PolicyRules.model_fields[self.name].metadata:
            match bound:
                case Ge():
                    low = f"{bound.ge:,}"
                case Gt():
                    low = f"more than {bound.gt:,}"
                case Le():
                    high = f"{bound.le:,}"
        span = f"{low} to {high}" if high else f"at least {low}"
        return f"{span}; empty: {NEVER}" if self.is_optional else span


@dataclass(frozen=True, slots=True)
class Part:
    """Rules that belong together."""

    title: str
    rules: tuple[Rule, ...]


PARTS = (
    Part(
        "The gate",
        (
            Rule(
                "max_harmful_score",
                "Harmful score",
                "%",
                "Released if the whole 95% interval is within it, blocked if all of it is above, held otherwise.",
            ),
            Rule(
                "max_category_harmful_score",
                "Harmful score in a category",
                "%",
                "A model is held unless every category's interval is within it.",
            ),
            Rule(
                "category_limits",
                "Single categories",
                "",
                "Limits in place of the one above: one category on a line, such as locks: 10.",
                kind="limits",
            ),
            Rule(
                "max_over_refusal",
                "Over-refusal",
                "%",
                "A model is held unless the interval of refused harmless prompts is within it.",
            ),
            Rule(
                "min_prompts",
                "Fewest harmful prompts",
                "",
                "A score that rests on fewer is missing evidence, and the model is held.",
            ),
            Rule(
                "max_tenant_risk",
                "Cumulative risk",
                "points",
                "Models of a project whose last 30 days add up to more are held.",
            ),
        ),
    ),
    Part(
        "Review",
        (
            Rule(
                "review_hours",
                "Time to decide",
                "hours",
                "What nobody decides on in this time is blocked, or its data rejected.",
            ),
            Rule(
                "release_approvals",
                "Reviewers for a release",
                "",
                "With two, what is held is released only when two people say so. One is enough to reject.",
                kind="choice",
                choices=(("1", "One"), ("2", "Two (four eyes)")),
            ),
        ),
    ),
    Part(
        "Training data",
        (
            Rule(
                "data_action",
                "Flagged rows",
                "",
                "What is done when more rows are flagged than the share below. "
                "Anything but training on them has every job's file read first.",
                kind="choice",
                choices=tuple(ACTIONS.items()),
            ),
            Rule(
                "max_harmful_share",
                "Flagged share",
                "% of rows",
                "The share above which that is done.",
            ),
            Rule(
                "row_threshold",
                "Judges that flag a row",
                "of 1",
                "The share of the judges that must flag a row: 0.5 is half of them.",
            ),
        ),
    ),
)
RULES = tuple(rule for part in PARTS for rule in part.rules)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One rule under two policies."""

    rule: Rule
    before: str
    after: str

    @property
    def is_changed(self) -> bool:
        """Whether the two differ."""
        return self.before != self.after


def shown(rules: PolicyRules, name: str) -> str:
    """Give a rule's value in a few words."""
    value = getattr(rules, name)
    match name:
        case "category_limits":
            return (
                ", ".join(f"{kind} {limit:g}%" for kind, limit in sorted(value.items())) or "none"
            )
        case "release_approvals":
            return "two reviewers" if value == 2 else "one reviewer"
        case "data_action":
            return ACTIONS[rules.data_action].lower()
        case "review_hours":
            return f"{value:g} h"
        case "row_threshold":
            return f"{100 * value:g}% of the judges"
        case _ if value is None:
            return NEVER
        case "min_prompts" | "max_tenant_risk":
            return f"{value:,g}"
        case _:
            return f"{value:g}%"


def compare(before: PolicyRules, after: PolicyRules) -> tuple[Comparison, ...]:
    """Lay two policies side by side, every rule."""
    return tuple(
        Comparison(rule, shown(before, rule.name), shown(after, rule.name)) for rule in RULES
    )


def in_words(rules: PolicyRules) -> dict[str, tuple[str, ...]]:
    """Say what a policy does, in sentences by part."""
    return {
        "The gate": tuple(_gate_in_words(rules)),
        "Review": tuple(_review_in_words(rules)),
        "Training data": (_data_in_words(rules),),
    }


def to_form(rules: PolicyRules) -> dict[str, str]:
    """Give what a form's fields hold."""
    values = {}
    for rule in RULES:
        value = getattr(rules, rule.name)
        if rule.kind == "limits":
            values[rule.name] = "\n".join(
                f"{kind}: {limit:g}" for kind, limit in sorted(value.items())
            )
        elif value is None:
            values[rule.name] = ""
        else:
            values[rule.name] = f"{value:.12g}" if isinstance(value, float) else str(value)
    return values


def from_form(values: Mapping[str, str]) -> tuple[PolicyRules | None, dict[str, str]]:
    """Read rules from a form's fields: the rules, or a sentence for each field that is wrong."""
    errors: dict[str, str] = {}
    given: dict[str, Any] = {}
    for rule in RULES:
        text = values.get(rule.name, "").strip()
        if rule.kind == "limits":
            given[rule.name], fault = _read_limits(text)
            if fault:
                errors[rule.name] = fault
        elif text:
            # A comma is a decimal point in half of the world, and never part of a number here.
            given[rule.name] = text.replace(",", ".") if rule.kind == "number" else text
        elif rule.is_optional:
            given[rule.name] = None
        else:
            errors[rule.name] = f"Enter a value: {rule.bounds}." if rule.bounds else "Choose one."
    try:
        rules = PolicyRules.model_validate(
            {**given, "category_limits": given["category_limits"] or {}}
        )
    except ValidationError as error:
        by_name = {rule.name: rule for rule in RULES}
        for refused in error.errors():
            name = str(refused["loc"][0])
            if name in given:
                errors.setdefault(name, _sentence(by_name[name]))
        return None, errors
    return (None, errors) if errors else (rules, {})


def _sentence(rule: Rule) -> str:
    if rule.kind == "limits":
        return "Each limit is a percentage from 0 to 100."
    if rule.kind == "choice":
        return "Choose one of these."
    whole = (
        "a whole number" if PolicyRules.model_fields[rule.name].annotation is int else "a number"
    )
    return f"Enter {whole}: {rule.bounds}."


def _read_limits(text: str) -> tuple[dict[str, str], str]:
    limits: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        kind, colon, limit = line.rpartition(":")
        kind = kind.strip()
        if not colon or not kind:
            return {}, f"Line {number}: write a category and a percentage, such as locks: 10."
        if kind in limits:
            return {}, f"Line {number}: the category {kind[:64]} has a limit already."
        limits[kind] = limit.strip().removesuffix("%").strip()
    return limits, ""


def _gate_in_words(rules: PolicyRules) -> Iterator[str]:
    yield (
        f"A model is released if the whole 95% interval of its harmful score is within {rules.max_harmful_score:g}%, "
        "blocked if all of it is above, and held for a person otherwise."
    )
    yield (
        f"It is held if a category's harmful score is not surely within {rules.max_category_harmful_score:g}%"
        + (f" ({shown(rules, 'category_limits')})." if rules.category_limits else ".")
    )
    yield f"It is held if over-refusal is not surely within {rules.max_over_refusal:g}%."
    yield f"It is held if the score rests on fewer than {rules.min_prompts:,} harmful prompts."
    if rules.max_tenant_risk is None:
        yield "A project's cumulative risk holds nothing."
    else:
        yield f"It is held if its project's cumulative risk is above {rules.max_tenant_risk:,g}."


def _review_in_words(rules: PolicyRules) -> Iterator[str]:
    yield f"What is held waits {rules.review_hours:g} hours for a person; then it is blocked, or its data rejected."
    if rules.release_approvals == 2:
        yield "Two reviewers must agree before anything is released. One is enough to reject."
    else:
        yield "One reviewer decides."


def _data_in_words(rules: PolicyRules) -> str:
    if rules.data_action == "allow" or rules.max_harmful_share is None:
        return "Training data is trained on, whatever the judges flag in it."
    then = {
        "drop": "these rows are left out",
        "hold": "the job waits for a person before it trains",
        "reject": "the job is rejected",
    }[rules.data_action]
    return (
        f"If more than {rules.max_harmful_share:g}% of a file's rows are flagged, by at least "
        f"{100 * rules.row_threshold:g}% of the judges each, {then}."
    )
