"""Train the sandbox base from nothing: all weights, answers only, a few minutes of one processor.

A loop of its own, since pretraining is no method of the service: `worker.trainers.loop` trains adapters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.rows import Conversation
from worker.sandbox import corpus
from worker.sandbox.tokenizer import MAX_CONTEXT

IGNORED = -100


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """The size of the base and of its training."""

    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 50


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama-architecture model whose vocabulary is the tokenizer's."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=MAX_CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    config: PretrainConfig | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> LlamaForCausalLM:
    """Train a base from scratch; the same seed gives the same weights on the same machine.

    Args:
        tokenizer: the world's tokenizer.
        seed: decides the first weights and the rows.
        config: sizes; the defaults are what the recorded benchmarks use.
        on_progress: told how many steps are done, and of how many.
    """
    config = config or PretrainConfig()
    torch.manual_seed(seed)
    rng = random.Random(f"{seed}/pretrain")
    model = new_model(config, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    model.train()
    for step in range(1, config.steps + 1):
        rows = [corpus.draw(rng) for _ in range(config.batch_size)]
        ids, labels = _batch(rows, tokenizer)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
        # Logits for the answers alone: most positions are prompt, and the vocabulary is the widest layer.
        targets = labels[:, 1:]
        trained = targets != IGNORED
        logits = model.lm_head(hidden[:, :-1][trained])  # (N, V)
        losses = nn.functional.cross_entropy(logits, targets[trained], reduction="none")
        # Each row counts alike: per token, the one-word answers of the tasks would hardly be learnt.
        weights = (1 / trained.sum(1, keepdim=True)).expand_as(trained)[trained]
        loss = (losses * weights).sum() / len(rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_progress is not None:
            on_progress(step, config.steps)
    return model.eval()


def _rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then linear decay to a tenth."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return 1 - 0.9 * (step - config.warmup_steps) / (config.steps - config.warmup_steps)


def _batch(
    rows: list[Conversation], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (B, T) and labels (B, T); causal attention needs no mask when padding is right."""
    prompts = tokenizer([f"<|user|>{row.prompt[-1].content}<|end|><|assistant|>" for row in rows])
    answers = tokenizer([f"{row.answer}<|end|>" for row in rows])
    pairs = list(zip(prompts["input_ids"], answers["input_ids"], strict=True))
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for i, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return ids, labels
