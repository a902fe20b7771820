"""A two-layer Llama and its tokenizer, built in memory: enough for every trainer test, no hub, no files."""

from __future__ import annotations

import random

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.hyperparameters import LoraConfig
from worker import lora
from worker.data import IGNORED, Example

PAD, EOS, USER, ASSISTANT, SYSTEM = "<pad>", "<end>", "<user>", "<assistant>", "<system>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer(
    chat_template: str = CHAT_TEMPLATE, merges: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """Give a byte-level tokenizer: 256 bytes, then `merges`, then five special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(first + second for first, second in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=chat_template,
    )


def tiny_model(
    vocabulary: int = 261,
    *,
    hidden: int = 16,
    layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """Give a random Llama of a few thousand parameters.

    In float64 its norms are replaced by plain ones: Llama's own compute in float32, which would drown
    what the finite-difference tests look for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.2,  # random weights large enough for gradients to matter
            )
        )
    model = model.to(dtype)
    if dtype == torch.float64:
        for layer in model.model.layers:
            layer.input_layernorm = _plain_norm(hidden)
            layer.post_attention_layernorm = _plain_norm(hidden)
        model.model.norm = _plain_norm(hidden)
    return model.eval()


def _plain_norm(hidden: int) -> torch.nn.RMSNorm:
    return torch.nn.RMSNorm(hidden, eps=1e-6, dtype=torch.float64)


def tiny_adapted(
    *, dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0, r: int = 2
) -> PeftModel:
    """Give the tiny model with an adapter that already does something: B is random, not 0."""
    model = lora.attach(tiny_model(dtype=dtype), LoraConfig(r=r, alpha=4, dropout=dropout), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_examples(
    count: int, *, seed: int = 0, shortest: int = 4, longest: int = 12
) -> list[Example]:
    """Give rows of random tokens and lengths; about the first third of each is its prompt."""
    draw = random.Random(seed)
    examples = []
    for line in range(1, count + 1):
        length = draw.randint(shortest, longest)
        tokens = tuple(draw.randrange(256) for _ in range(length))
        prompt = length // 3
        labels = (IGNORED,) * prompt + tokens[prompt:]
        examples.append(Example(tokens, labels, line))
    return examples
