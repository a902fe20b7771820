"""Decoders of many families: where their attention, feed-forward part, norm and output layer are."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from models.hyperparameters import LoraConfig
from worker import lora
from worker.trainers.structure import (
    UnknownStructure,
    attention_modules,
    decoder_layers,
    feed_forward_modules,
    final_norm,
    output_layer,
    outputs_seen,
    outputs_shifted,
)

LAYERS, HIDDEN = 2, 16
COMMON = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GATED = COMMON | {"intermediate_size": 24, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": GATED,
    "Mistral": GATED,
    "Qwen2": GATED,
    "Qwen3": GATED | {"head_dim": 8},
    "Gemma": GATED | {"head_dim": 8},
    "Gemma2": GATED | {"head_dim": 8},
    "Phi": COMMON | {"intermediate_size": 24},
    "Phi3": GATED | {"pad_token_id": 0},
    "OPT": COMMON | {"ffn_dim": 24, "word_embed_proj_dim": HIDDEN},
    "GPTNeoX": COMMON | {"intermediate_size": 24},
    "GPT2": {"vocab_size": 40, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 32},
}
IDS = torch.tensor([[1, 2, 3, 4, 5]])


def model_of(family: str) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_every_layer_has_its_parts(self, family: str) -> None:
        model = model_of(family)
        assert len(decoder_layers(model)) == LAYERS
        for found in (attention_modules(model), feed_forward_modules(model)):
            assert len(found) == LAYERS
            assert len({id(module) for module in found}) == LAYERS
        with outputs_seen([*attention_modules(model), *feed_forward_modules(model)]) as seen:
            model(input_ids=IDS)
        # OPT lays the rows of a batch end to end before its feed-forward part.
        assert [x.numel() for x in seen] == [5 * HIDDEN] * 2 * LAYERS

    def test_final_norm_and_output_layer_read_the_logits_off_the_last_layer(
        self, family: str
    ) -> None:
        model = model_of(family)
        with outputs_seen([decoder_layers(model)[-1]]) as seen:
            logits = model(input_ids=IDS).logits
        read = output_layer(model)(final_norm(model)(seen[0]))
        if family == "Gemma2":  # its logits are capped afterwards
            cap = model.config.final_logit_softcapping
            read = cap * torch.tanh(read / cap)
        torch.testing.assert_close(read, logits)

    def test_a_shift_of_0_changes_nothing_and_another_does(self, family: str) -> None:
        model = model_of(family)
        plain = model(input_ids=IDS).logits
        modules = attention_modules(model)
        zero, one = torch.zeros(1, 5, HIDDEN), torch.full((1, 5, HIDDEN), 0.5)
        one[..., ::2] = -0.5  # a constant would be taken out again by a norm
        with outputs_shifted(modules, [zero] * LAYERS):
            assert torch.equal(model(input_ids=IDS).logits, plain)
        with outputs_shifted(modules, [one] * LAYERS):
            assert not torch.allclose(model(input_ids=IDS).logits, plain)
        assert torch.equal(model(input_ids=IDS).logits, plain), "a hook was left behind"

    def test_an_adapter_hides_nothing(self, family: str) -> None:
        model = lora.attach(model_of(family), LoraConfig(r=2), 0)
        assert len(attention_modules(model)) == LAYERS
        assert len(feed_forward_modules(model)) == LAYERS
        assert output_layer(model) is output_layer(model.get_base_model())


class TestFaults:
    def test_what_is_no_decoder_is_named(self) -> None:
        with pytest.raises(UnknownStructure, match="no list of decoder layers"):
            attention_modules(torch.nn.Linear(2, 2))

    def test_hooks_are_gone_after_an_error(self) -> None:
        model = model_of("Llama")
        with (
            pytest.raises(RuntimeError),
            outputs_shifted(attention_modules(model), [torch.ones(7), torch.ones(7)]),
        ):
            model(input_ids=IDS)
        model(input_ids=IDS)
