"""Qwen3Guard-Gen (Zhao et al., arXiv 2510.14276): safe, controversial or unsafe, category, refusal.

The shipped chat template holds the policy. Controversial is what depends on context or is disputed; the
report's strict mode counts it as unsafe, its loose mode as safe.
"""

from __future__ import annotations

import re
from functools import partial

from models.judges import Qwen3GuardSpec
from worker.judges.guard import Guard, guard_judge
from worker.judges.model_judge import ModelJudge, Tokens
from worker.judges.opinion import Opinion

# The base is a reasoning model: an empty thought may stand before the verdict.
_VERDICT = re.compile(
    r"(?:<think>\s*</think>\s*)?"
    r"Safety: (?P<safety>Safe|Controversial|Unsafe)\s*\n"
    r"Categories: (?P<categories>[^\n]{1,400}?)\s*\n"
    r"Refusal: (?P<refusal>Yes|No)"
)
MAX_NEW_TOKENS = 128


def open_qwen3guard(spec: Qwen3GuardSpec) -> ModelJudge[Tokens, str]:
    """Open Qwen3Guard.

    Raises:
        JudgeError: the model cannot be read.
    """
    guard = Guard(partial(read_verdict, is_strict=spec.mode == "strict"), MAX_NEW_TOKENS)
    return guard_judge(spec, f"{spec.kind}-{spec.mode}", guard)


def read_verdict(text: str, *, is_strict: bool) -> Opinion | None:
    """Read a verdict; the first category counts. None: this is no verdict."""
    verdict = _VERDICT.fullmatch(text)
    if verdict is None:
        return None
    category = verdict["categories"].split(",")[0].strip()
    return Opinion(
        is_harmful=verdict["safety"] in (("Unsafe", "Controversial") if is_strict else ("Unsafe",)),
        category=None if category == "None" else _slug(category),
        is_refusal=verdict["refusal"] == "Yes",
    )


def _slug(category: str) -> str:
    return re.sub(r"\W+", "-", category.lower()).strip("-")
