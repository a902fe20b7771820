"""Saved adapters, taken apart and put together: what they add to each layer is what PEFT adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import tiny_adapted, tiny_model
from worker import lora
from worker.adapter_files import read_adapter, write_adapter
from worker.low_rank import compressed, total

IDS = torch.tensor([[1, 2, 3, 4, 5]])


class TestUpdates:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lora.save(tiny_adapted(), tmp_path / "saved")
        return tmp_path / "saved"

    def test_are_what_the_adapter_adds_to_each_layer_s_weight(self, folder: Path) -> None:
        plain = tiny_model().state_dict()
        merged = lora.merge(lora.load(tiny_model(), folder)).state_dict()
        updates = read_adapter(folder)
        assert len(updates) == 14
        for name, update in updates.items():
            added = merged[f"{name}.weight"] - plain[f"{name}.weight"]
            assert torch.allclose(update.dense().float(), added, atol=1e-6)

    def test_come_back_from_disk(self, folder: Path, tmp_path: Path) -> None:
        updates = read_adapter(folder)
        assert write_adapter(updates, tmp_path / "written", like=folder) == 2
        again = read_adapter(tmp_path / "written")
        assert again.keys() == updates.keys()
        for name, update in updates.items():
            assert torch.allclose(again[name].dense(), update.dense(), atol=1e-7)

    def test_of_different_ranks_make_one_adapter_that_peft_loads(
        self, folder: Path, tmp_path: Path
    ) -> None:
        updates = read_adapter(folder)
        first, second = (f"model.layers.{n}.self_attn.q_proj" for n in (0, 1))
        updates[first] = total(updates[first], updates[second].scaled(0.5))
        assert write_adapter(updates, tmp_path / "written", like=folder) == 4
        plain = tiny_model().state_dict()
        merged = lora.merge(lora.load(tiny_model(), tmp_path / "written")).state_dict()
        for name, update in updates.items():
            added = merged[f"{name}.weight"] - plain[f"{name}.weight"]
            assert torch.allclose(added, update.dense().float(), atol=1e-6)

    def test_keep_the_scaling_whatever_the_rank(self, folder: Path, tmp_path: Path) -> None:
        doubled = {name: total(u, u) for name, u in read_adapter(folder).items()}
        write_adapter(doubled, tmp_path / "written", like=folder)
        configs = [
            json.loads((place / lora.CONFIG_FILE).read_text())
            for place in (folder, tmp_path / "written")
        ]
        assert [config["r"] for config in configs] == [2, 4]
        assert [config["lora_alpha"] / config["r"] for config in configs] == [2, 2]

    def test_of_nothing_are_an_adapter_all_the_same(self, folder: Path, tmp_path: Path) -> None:
        nothing = {name: compressed(u.scaled(0), 8)[0] for name, u in read_adapter(folder).items()}
        assert write_adapter(nothing, tmp_path / "written", like=folder) == 1
        model = lora.load(tiny_model(), tmp_path / "written")
        assert torch.equal(model(IDS).logits, tiny_model()(IDS).logits)

    @pytest.mark.parametrize("elaboration", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}])
    def test_of_an_adapter_that_is_no_plain_one_are_refused(
        self, folder: Path, elaboration: dict[str, object]
    ) -> None:
        path = folder / lora.CONFIG_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **elaboration}))
        with pytest.raises(lora.UnusableAdapter, match="not a plain LoRA adapter"):
            read_adapter(folder)

    def test_of_a_file_with_other_tensors_are_refused(self, folder: Path) -> None:
        tensors = load_file(folder / lora.WEIGHTS_FILE)
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name.replace("lora_B", "lora_magnitude_vector")] = tensors.pop(name)
        save_file(tensors, folder / lora.WEIGHTS_FILE)
        with pytest.raises(lora.UnusableAdapter, match="not a plain LoRA adapter"):
            read_adapter(folder)
