"""Adapters: where they start, what they weigh, and that they come back from disk unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from models.hyperparameters import LoraConfig
from tests.tiny_model import tiny_adapted, tiny_model
from worker import lora

IDS = torch.tensor([[1, 2, 3, 4, 5]])


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class TestAttach:
    def test_changes_nothing_at_first(self) -> None:
        model = tiny_model()
        before = model(IDS).logits
        assert torch.equal(lora.attach(model, LoraConfig(), 0)(IDS).logits, before)

    def test_trains_the_adapter_on_every_linear_layer_but_the_output(self) -> None:
        names = lora.trainable_parameters(lora.attach(tiny_model(), LoraConfig(), 0))
        assert len(names) == 2 * 2 * 7  # A and B, layers, linear layers in each
        assert all("lora_" in name for name in names)
        assert not any("lm_head" in name for name in names)

    def test_only_the_layers_named(self) -> None:
        model = lora.attach(tiny_model(), LoraConfig(target_modules=("q_proj", "v_proj")), 0)
        assert len(lora.trainable_parameters(model)) == 2 * 2 * 2

    def test_finds_the_layers_of_another_architecture(self) -> None:
        config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        model = lora.attach(GPT2LMHeadModel(config), LoraConfig(), 0)
        assert len(lora.trainable_parameters(model)) == 2 * 4

    def test_layers_that_do_not_exist(self) -> None:
        with pytest.raises(lora.UnusableAdapter, match="target_modules"):
            lora.attach(tiny_model(), LoraConfig(target_modules=("nothing",)), 0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_is_float32_over_any_base(self, dtype: torch.dtype) -> None:
        model = lora.attach(tiny_model(dtype=dtype), LoraConfig(), 0)
        assert {p.dtype for p in lora.trainable_parameters(model).values()} == {torch.float32}
        assert model.base_model.model.lm_head.weight.dtype == dtype

    def test_start_is_a_function_of_the_seed(self) -> None:
        starts = []
        for seed, noise in ((1, 5), (1, 6), (2, 5)):
            torch.manual_seed(noise)
            model = lora.attach(tiny_model(), LoraConfig(), seed)
            starts.append(lora.trainable_parameters(model))
        assert same(starts[0], starts[1])
        assert not same(starts[0], starts[2])

    def test_leaves_the_random_state_and_the_mode_alone(self) -> None:
        state = torch.get_rng_state()
        model = lora.attach(tiny_model(), LoraConfig(dropout=0.5), 1)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in model.modules())


class TestSaveAndLoad:
    def test_round_trip(self, tmp_path: Path) -> None:
        model = tiny_adapted(seed=3)
        expected = model(IDS).logits
        lora.save(model, tmp_path / "new" / "adapter", base_model="titer/tiny")
        again = lora.load(tiny_model(), tmp_path / "new" / "adapter")
        assert torch.equal(again(IDS).logits, expected)
        assert same(lora.trainable_parameters(again), lora.trainable_parameters(model))

    def test_writes_pefts_two_files_and_no_path_of_this_machine(self, tmp_path: Path) -> None:
        model = tiny_adapted()
        model.peft_config["default"].base_model_name_or_path = "/home/someone/base"
        lora.save(model, tmp_path, base_model="titer/tiny")
        assert {path.name for path in tmp_path.iterdir()} == {lora.CONFIG_FILE, lora.WEIGHTS_FILE}
        config = json.loads((tmp_path / lora.CONFIG_FILE).read_text())
        assert config["base_model_name_or_path"] == "titer/tiny"
        assert config["peft_type"] == "LORA"
        assert config["inference_mode"] is True
        assert {t.dtype for t in load_file(tmp_path / lora.WEIGHTS_FILE).values()} == {
            torch.float32
        }

    def test_over_a_bfloat16_base_stays_float32(self, tmp_path: Path) -> None:
        lora.save(tiny_adapted(), tmp_path)
        again = lora.load(tiny_model(dtype=torch.bfloat16), tmp_path)
        stored = load_file(tmp_path / lora.WEIGHTS_FILE)
        for name, tensor in lora.trainable_parameters(again).items():
            assert torch.equal(tensor, stored[name.replace(".default", "")])

    def test_for_use_alone_nothing_is_trainable(self, tmp_path: Path) -> None:
        lora.save(tiny_adapted(), tmp_path)
        model = lora.load(tiny_model(), tmp_path, trainable=False)
        assert lora.trainable_parameters(model) == {}

    @pytest.mark.parametrize("missing", [lora.CONFIG_FILE, lora.WEIGHTS_FILE])
    def test_an_incomplete_folder(self, tmp_path: Path, missing: str) -> None:
        lora.save(tiny_adapted(), tmp_path)
        (tmp_path / missing).unlink()
        (tmp_path / "adapter_model.bin").write_bytes(b"a pickle would be here")
        with pytest.raises(lora.UnusableAdapter, match=missing):
            lora.load(tiny_model(), tmp_path)

    @pytest.mark.parametrize("layers", [1, 3])
    def test_an_adapter_of_a_base_with_more_or_fewer_layers(
        self, tmp_path: Path, layers: int
    ) -> None:
        config = LoraConfig(r=2, target_modules=("q_proj", "v_proj"))
        lora.save(lora.attach(tiny_model(), config, 0), tmp_path)
        base = tiny_model(layers=layers)
        before = set(base.state_dict())
        with pytest.raises(lora.UnusableAdapter, match="other layers"):
            lora.load(base, tmp_path)
        assert set(base.state_dict()) == before

    def test_an_adapter_of_another_base(self, tmp_path: Path) -> None:
        lora.save(tiny_adapted(), tmp_path)
        with pytest.raises(lora.UnusableAdapter, match="does not fit"):
            lora.load(tiny_model(hidden=32), tmp_path)


class TestMergeAndDetach:
    def test_merged_weights_answer_as_the_adapter_did(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        expected = model(IDS).logits
        merged = lora.merge(model)
        torch.testing.assert_close(merged(IDS).logits, expected)
        assert not any("lora_" in name for name, _ in merged.named_parameters())

    def test_merging_adds_alpha_over_r_times_b_a(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = layer.base_layer.weight + 4 / 2 * B @ A
        torch.testing.assert_close(lora.merge(model).model.layers[0].mlp.up_proj.weight, expected)

    def test_the_detached_base_is_untouched_and_takes_the_next_adapter(self) -> None:
        base = tiny_model()
        expected = base(IDS).logits
        plain = lora.detach(tiny_adapted())
        assert torch.equal(plain(IDS).logits, expected)
        again = lora.attach(plain, LoraConfig(), 1)
        assert len(lora.trainable_parameters(again)) == 28
