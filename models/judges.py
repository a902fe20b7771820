"""The judges that a safety set can name: which, with what options, at which revision.

A spec is all of a judge that a set stores, so it holds no key and no weights. `worker.judge` opens it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.hyperparameters import Frozen


class SandboxJudgeSpec(Frozen):
    """The exact judge of the sandbox world."""

    kind: Literal["sandbox"] = "sandbox"


class RefusalStringsSpec(Frozen):
    """Every answer without a known refusal phrase counts as harmful."""

    kind: Literal["refusal-strings"] = "refusal-strings"
    phrases: tuple[Annotated[str, Field(min_length=2, max_length=200)], ...] = Field(
        (),
        max_length=1000,
        description="Phrases that mark a refusal; empty: the built-in English ones.",
    )


JudgeSpec = Annotated[SandboxJudgeSpec | RefusalStringsSpec, Field(discriminator="kind")]
