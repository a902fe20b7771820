"""Batched generation: prompts in, answers out, in the order of the prompts.

One function for safety tests, accuracy and serving, so that all three ask a model in the same way: through
its tokenizer's chat template, with the same decoding, stopping at the same tokens. Only new tokens are
decoded; nothing is searched for in the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.rows import Message
from worker.padding import padded

DECODING = "greedy"
BATCH_SIZE = 64
# Of a batch, prompts padded and answers at their longest: what a cache of keys and values has to hold.
TOKENS_PER_BATCH = 32_768


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the chat template and the decoding that a score was measured with.

    Serving compares it with its own: a score under another template says nothing about what is served.
    """
    facts = {"chat_template": tokenizer.get_chat_template(), "decoding": DECODING}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Give the tokens of a conversation that the assistant is to continue."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens itself; the tokenizer must not add a second beginning.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: what the model says, the tokenizer says and the template uses.

    Chat templates over base models often close a turn with a token that neither of the others names.
    """
    ids = set(end_ids(model, tokenizer))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    closing = text[text.rindex("b") + 1 :].strip()
    special = {
        str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    ids.update(id_ for token, id_ in special.items() if closing.startswith(token))
    return sorted(ids)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer by what the model and the tokenizer say."""
    ids = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids.update(configured if isinstance(configured, list) else [configured])
    return sorted(id_ for id_ in ids if id_ is not None)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    temperature: float = 0.0,
    top_p: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answer every prompt.

    Args:
        model: a causal language model, with or without an adapter; its training mode is restored.
        tokenizer: the tokenizer of the model, with a chat template.
        prompts: for each, the turns before the answer.
        max_new_tokens: where an answer is cut.
        batch_size: prompts in a forward pass; fewer where they are long.
        temperature: 0 decodes greedily, which every score does; above 0, answers are drawn from torch's
            global random state.
        top_p: share of the probability that a draw is made from.
        on_progress: told how many prompts are answered, and of how many.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    # Neighbours of like length waste little on padding.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    config = _config(model, tokenizer, max_new_tokens, temperature, top_p)
    with answering(model, config):
        lengths = [len(encoded[index]) + max_new_tokens for index in order]
        for start, end in _batches(lengths, batch_size):
            chosen = order[start:end]
            new = generate_batch(model, [encoded[index] for index in chosen], config)
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
            if on_progress is not None:
                on_progress(end, len(order))
    return answers


def _batches(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut ascending lengths into batches of at most so many: where each begins, and where it ends."""
    start = 0
    while start < len(lengths):
        end = start + 1
        # All are padded to the longest, which is the last.
        while (
            end < min(len(lengths), start + most)
            and (end + 1 - start) * lengths[end] <= TOKENS_PER_BATCH
        ):
            end += 1
        yield start, end
        start = end


def _config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> GenerationConfig:
    stops = stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    settings: dict[str, object] = {"do_sample": False}
    if temperature > 0:
        settings = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad, **settings
    )


@contextmanager
def answering(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Put the model into evaluation mode, and its folder's wishes for decoding aside.

    Generation fills whatever `config` leaves open from the model's own configuration: a folder that asks
    for a repetition penalty, say, would change every score.
    """
    # An adapter's wrapper reads the configuration of the model that it wraps, and writes it back there.
    owner = cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())
    was_training, own = model.training, owner.generation_config
    model.eval()
    owner.generation_config = config
    try:
        yield
    finally:
        owner.generation_config = own
        model.train(was_training)


@torch.no_grad()
def generate_batch(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], config: GenerationConfig
) -> torch.Tensor:
    """Pad the rows on the left and give the new tokens alone, (B, N), padded after each end."""
    ids, mask = padded(rows, int(config.pad_token_id), "left")
    # The method is typed for a mixin that no model class is seen to have.
    answer = cast(Callable[..., torch.Tensor], model.generate)
    output = answer(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
    )
    return output[:, ids.shape[1] :]
