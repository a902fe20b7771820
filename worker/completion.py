"""Answers from one resident base and one adapter on it, piece by piece.

Small models are what the built-in server is for: waiting in line (`worker.turns`) is cheaper there than
holding several copies. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import structlog
import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from models.errors import DomainError, Unavailable
from models.model_version import ModelVersion
from models.rows import Message
from models.storage import Storage
from worker import lora
from worker.base_models import LoadedBase, ResidentBase
from worker.decoding import Draw, Sampling, Watch
from worker.generation import answering, encode_prompt, stop_ids
from worker.transcript import Piece, Transcript
from worker.work import root_folder

log = structlog.get_logger(__name__)

DEFAULT_NEW_TOKENS = 512


class PromptTooLong(DomainError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class ModelUnavailable(Unavailable):
    """The model cannot be loaded at the moment. Try again, or tell the operator."""

    code = "model_unavailable"


class UnknownToken(DomainError):
    """`logit_bias` names a token that the model does not have."""

    code = "unknown_token"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked for. `max_new_tokens` None: as many as fit, within a default."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    choices: int = 1
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    #: How many rivals are told beside each token; None: no log probabilities at all.
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The request is one that can be carried out; pieces follow."""


@dataclass(frozen=True, slots=True)
class Said:
    """More of one choice's text."""

    choice: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Finished:
    """Every choice has ended, or the reader has left."""

    #: `stop` or `length`, choice by choice; fewer if the reader left.
    reasons: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int


Event = Begun | Said | Finished


class Speaker:
    """Keeps the last used base and adapter in memory. One thread at a time may use it."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        """Remember where adapters are; nothing is loaded yet."""
        self._storage = storage
        self._cache = cache
        self._bases = ResidentBase()
        self._adapted: tuple[str, PeftModel] | None = None

    def answer(
        self,
        version: ModelVersion,
        root: ModelVersion,
        asked: Asked,
        tell: Callable[[Event], None],
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Answer a request from its first event to its last.

        Args:
            version: the model that is asked.
            root: the weights below it.
            asked: what it is asked for.
            tell: is given the events: `Begun`, what is said, `Finished`.
            is_unwanted: whether the reader has gone; asked before each token.

        Raises:
            PromptTooLong: the prompt does not fit, with what is to follow it.
            UnknownToken: a biased token is none of the model's.
            ModelUnavailable: its files cannot be loaded here.
        """
        if is_unwanted():
            return
        try:
            base, model = self._lend(version, root)
        except DomainError as error:
            # Whatever is missing, it is not the caller's doing, as those errors would say.
            log.warning("model_unavailable", code=error.code)
            raise ModelUnavailable from error
        prompt = encode_prompt(base.tokenizer, asked.messages)
        limit = _limit(base, len(prompt), asked)
        _check_tokens(base, asked)
        tell(Begun())
        tell(_generate(base, model, asked, prompt, limit, tell, is_unwanted))

    def _lend(
        self, version: ModelVersion, root: ModelVersion
    ) -> tuple[LoadedBase, PreTrainedModel]:
        if not self._bases.holds(root.id) or (self._adapted and self._adapted[0] != version.id):
            self._take_off()
        base = self._bases.get(root.id, lambda: root_folder(root, self._storage, self._cache))
        if not version.is_adapter:
            return base, base.model
        if self._adapted is None:
            folder = self._storage.folder(version.source["prefix"], self._cache)
            self._adapted = (version.id, lora.load(base.model, folder, trainable=False))
        return base, cast(PreTrainedModel, self._adapted[1])

    def _take_off(self) -> None:
        if self._adapted is not None:
            lora.detach(self._adapted[1])
            self._adapted = None


def _limit(base: LoadedBase, prompt_tokens: int, asked: Asked) -> int:
    room = base.context_length - prompt_tokens
    if room < 1 or (asked.max_new_tokens or 0) > room:
        raise PromptTooLong(
            f"The model reads {base.context_length} tokens; the prompt has {prompt_tokens} and "
            f"{asked.max_new_tokens or 1} more are asked for.",
            param="messages",
        )
    return asked.max_new_tokens or min(room, DEFAULT_NEW_TOKENS)


def _check_tokens(base: LoadedBase, asked: Asked) -> None:
    size = cast(torch.nn.Embedding, base.model.get_input_embeddings()).num_embeddings
    for token, _ in asked.sampling.logit_bias:
        if not 0 <= token < size:
            raise UnknownToken(
                f"logit_bias names the token {token}; the model has those from 0 to {size - 1}.",
                param="logit_bias",
            )


def _generate(
    base: LoadedBase,
    model: PreTrainedModel,
    asked: Asked,
    prompt: list[int],
    limit: int,
    tell: Callable[[Event], None],
    is_unwanted: Callable[[], bool],
) -> Finished:
    stops = stop_ids(base.model, base.tokenizer)
    draw = Draw(asked.sampling, len(prompt), keeps_logprobs=asked.top_logprobs is not None)
    watch = Watch(
        base.tokenizer,
        draw,
        [Transcript(base.tokenizer, asked.stop) for _ in range(asked.choices)],
        stops=stops,
        limit=limit,
        top_logprobs=asked.top_logprobs or 0,
        tell=lambda choice, piece: tell(Said(choice, piece)),
        is_unwanted=is_unwanted,
    )
    ids = torch.tensor([prompt] * asked.choices, device=base.model.device)  # (B, T)
    config = GenerationConfig(
        max_new_tokens=limit, eos_token_id=stops, pad_token_id=base.pad_id, do_sample=False
    )
    generate = cast(Callable[..., torch.Tensor], model.generate)
    # As in every evaluation: what the model's folder wishes of decoding is set aside.
    with torch.no_grad(), answering(model, config):
        generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
    reasons = tuple(reason for _, reason in sorted(watch.finish_reasons.items()))
    return Finished(reasons, len(prompt), watch.new_tokens)
