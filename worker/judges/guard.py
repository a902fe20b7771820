"""Guards: judges that write their verdict. What is shared by Llama Guard, Qwen3Guard and WildGuard.

A guard reads an exchange through a chat template, nearly always the one that it ships, and continues it
greedily in a small grammar. Text outside that grammar is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel

from models.judges import ModelJudgeSpec
from worker.generation import answering, end_ids, generate_batch
from worker.judgement import JudgeError
from worker.judges.chat import chat_encoder
from worker.judges.loading import JudgeModel
from worker.judges.model_judge import Method, ModelJudge, Tokens
from worker.judges.opinion import Opinion


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard's interface."""

    #: Reads a verdict; None if the text is none.
    read: Callable[[str], Opinion | None]
    #: No verdict is longer.
    max_new_tokens: int
    #: The chat template of a guard that ships none.
    template: str | None = None
    #: Puts right what a model's own files leave wrong.
    prepare: Callable[[PreTrainedModel], None] | None = None


def guard_judge(spec: ModelJudgeSpec, name: str, guard: Guard) -> ModelJudge[Tokens, str]:
    """Open a guard.

    Raises:
        JudgeError: the model cannot be read, or has no chat template that shows it an exchange.
    """
    wording = [guard.template] if guard.template else []
    return ModelJudge(spec, name, "causal", lambda model: _method(guard, name, model), wording)


def _method(guard: Guard, name: str, loaded: JudgeModel) -> Method[Tokens, str]:
    model, tokenizer = loaded.model, loaded.tokenizer
    if guard.prepare is not None:
        guard.prepare(model)
    encode = chat_encoder(loaded, guard.template or loaded.chat_template, opens_turn=True)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=guard.max_new_tokens,
        eos_token_id=end_ids(model, tokenizer),
        pad_token_id=loaded.pad_id,
    )

    def ask(rows: list[Tokens]) -> list[str]:
        with answering(model, config):
            return tokenizer.batch_decode(
                generate_batch(model, rows, config), skip_special_tokens=True
            )

    def conclude(verdicts: Sequence[str]) -> Opinion:
        opinion = guard.read(verdicts[0].strip())
        if opinion is None:
            raise JudgeError(f"{name} wrote something that is no verdict.")
        return opinion

    return Method(lambda prompt, answer: [encode(prompt, answer)], ask, conclude)
