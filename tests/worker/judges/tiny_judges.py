"""Judge models in miniature whose verdicts are known: each says "harmful" when it has read a `#`.

The weights are set by hand. Attention is uniform, so the last token holds the mean of what was read; one
component of it is fed by the flag token `#`, and by the pad token, so that a mask that fails shows itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny_model import CHAT_TEMPLATE, PAD, tiny_tokenizer

FLAG = "#"
HIDDEN = 16
# Components of the hidden state.
ALWAYS, FLAGGED, SEEN, ENDING = 0, 1, 2, 3

SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def judge_tokenizer(
    words: Sequence[str] = (), chat_template: str | None = CHAT_TEMPLATE
) -> PreTrainedTokenizerBase:
    """Give a byte-level tokenizer in which each word, spaces and line ends included, is one token."""
    tokenizer = tiny_tokenizer(chat_template or "")
    if chat_template is None:
        tokenizer.chat_template = None
    tokenizer.add_tokens(list(words))
    return tokenizer


def token_of(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
    return token


def llama(size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES))


def qwen3(size: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=size, **SIZES))


def mistral(size: int) -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(vocab_size=size, sliding_window=None, **SIZES))


def gemma2(size: int) -> Gemma2ForCausalLM:
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=size, query_pre_attn_scalar=8, **SIZES))


@torch.no_grad()
def read_flags(decoder: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a decoder's weights so that `SEEN` is above 0 at the last token if a flag was read."""
    for name, parameter in decoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    embeddings = decoder.embed_tokens.weight
    embeddings[:, ALWAYS] = 1.0
    for token in (token_of(tokenizer, FLAG), tokenizer.convert_tokens_to_ids(PAD)):
        embeddings[token, FLAGGED] = 4.0
    attention = decoder.layers[0].self_attn
    attention.v_proj.weight[FLAGGED, FLAGGED] = 1.0
    attention.o_proj.weight[SEEN, FLAGGED] = 1.0


@torch.no_grad()
def write_verdicts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, harmful: str, safe: str
) -> None:
    """Let a causal model write one word if a flag was read and another if not, and then end."""
    decoder, head = model.model, model.lm_head.weight
    read_flags(decoder, tokenizer)
    head.zero_()
    head[token_of(tokenizer, harmful), SEEN] = 1e3
    head[token_of(tokenizer, safe), ALWAYS] = 1.0
    head[tokenizer.eos_token_id, ENDING] = 1e4
    for word in (harmful, safe):
        decoder.embed_tokens.weight[token_of(tokenizer, word), ENDING] = 100.0


def save_judge(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def guard_folder(
    folder: Path,
    *,
    harmful: str,
    safe: str,
    family: Callable[[int], PreTrainedModel] = llama,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Save a guard that writes these two verdicts."""
    tokenizer = judge_tokenizer((harmful, safe), chat_template)
    model = family(len(tokenizer))
    write_verdicts(model, tokenizer, harmful, safe)
    return save_judge(folder, model, tokenizer)


def beaver_folder(folder: Path, *, labels: int = 14, flagged_label: int = 13) -> Path:
    """Save a Llama with a classification head, in beaver-dam's layout: one label knows the flag."""
    tokenizer = judge_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_labels=labels,
        problem_type="multi_label_classification",
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    model = LlamaForSequenceClassification(config)
    read_flags(model.model, tokenizer)
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.weight[:, ALWAYS] = -1.0
        model.score.weight[flagged_label, SEEN] = 1e3
    return save_judge(folder, model, tokenizer)
