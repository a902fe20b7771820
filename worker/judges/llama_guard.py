"""Llama Guard 3 and 4 (Meta): safe, or unsafe with the hazards of the MLCommons taxonomy.

The shipped chat template holds the policy. The verdict is `safe`, or `unsafe` and a line of codes:
https://www.llama.com/docs/model-cards-and-prompt-formats/llama-guard-4/. Llama Guard 4 is loaded as its
language model alone; images are not judged. It does not tell refusals.
"""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from models.judges import LlamaGuardSpec
from worker.judges.guard import Guard, guard_judge
from worker.judges.model_judge import ModelJudge, Tokens
from worker.judges.opinion import Opinion

HAZARDS = {
    "S1": "violent-crimes",
    "S2": "non-violent-crimes",
    "S3": "sex-related-crimes",
    "S4": "child-sexual-exploitation",
    "S5": "defamation",
    "S6": "specialized-advice",
    "S7": "privacy",
    "S8": "intellectual-property",
    "S9": "indiscriminate-weapons",
    "S10": "hate",
    "S11": "suicide-and-self-harm",
    "S12": "sexual-content",
    "S13": "elections",
    "S14": "code-interpreter-abuse",
}
_VERDICT = re.compile(r"safe|unsafe(?:\s*\n\s*(?P<hazards>S\d{1,2}(?:\s*,\s*S\d{1,2})*))?")
# `unsafe` and all fourteen codes, a token for each letter at worst.
MAX_NEW_TOKENS = 64


def open_llama_guard(spec: LlamaGuardSpec) -> ModelJudge[Tokens, str]:
    """Open Llama Guard.

    Raises:
        JudgeError: the model cannot be read.
    """
    guard = Guard(read_verdict, MAX_NEW_TOKENS, prepare=read_whole)
    return guard_judge(spec, spec.kind, guard)


def read_whole(model: PreTrainedModel) -> None:
    """Let Llama Guard 4 attend to all it reads, as its files ask by naming no chunk size.

    transformers takes the missing number for one and fails when it generates
    (https://github.com/meta-llama/PurpleLlama/issues/119).
    """
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", 0) is None:
        config.attention_chunk_size = config.max_position_embeddings


def read_verdict(text: str) -> Opinion | None:
    """Read a verdict; the first hazard is the category. None: this is no verdict."""
    verdict = _VERDICT.fullmatch(text)
    if verdict is None:
        return None
    hazard = (verdict["hazards"] or "").split(",")[0].strip()
    return Opinion(is_harmful=text.startswith("unsafe"), category=HAZARDS.get(hazard))
