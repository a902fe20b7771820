"""The one place where a judge is opened.

A judge reads a prompt and an answer, never a model that is being judged. A judge that cannot say raises
`JudgeError`: there is no judgement for "I do not know", because a gate would read one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

from models.judges import (
    BeaverDamSpec,
    ClassifierSpec,
    JudgeSpec,
    LlamaGuardSpec,
    ModerationApiSpec,
    Qwen3GuardSpec,
    RefusalStringsSpec,
    SandboxJudgeSpec,
    ShieldGemmaSpec,
    WildGuardSpec,
)
from worker.judgement import Judge
from worker.judges.beaver_dam import open_beaver_dam
from worker.judges.classifier import open_classifier
from worker.judges.llama_guard import open_llama_guard
from worker.judges.moderation_api import ModerationApiJudge
from worker.judges.qwen3guard import open_qwen3guard
from worker.judges.refusal_strings import RefusalStringsJudge
from worker.judges.shieldgemma import open_shieldgemma
from worker.judges.wildguard import open_wildguard
from worker.sandbox.judge import SandboxJudge


@lru_cache(maxsize=16)
def open_judge(spec: JudgeSpec) -> Judge:
    """Open the judge that a safety set names; for equal specs the same judge, with its model in memory.

    A judge's `close` gives the memory back; the next use takes it again.

    Raises:
        JudgeError: the judge cannot be opened.
    """
    match spec:
        case SandboxJudgeSpec():
            return SandboxJudge()
        case RefusalStringsSpec(phrases=phrases, match=match):
            return RefusalStringsJudge(phrases, match)
        case BeaverDamSpec():
            return open_beaver_dam(spec)
        case LlamaGuardSpec():
            return open_llama_guard(spec)
        case Qwen3GuardSpec():
            return open_qwen3guard(spec)
        case WildGuardSpec():
            return open_wildguard(spec)
        case ShieldGemmaSpec():
            return open_shieldgemma(spec)
        case ClassifierSpec():
            return open_classifier(spec)
        case ModerationApiSpec():
            return ModerationApiJudge(spec)
    assert_never(spec)
