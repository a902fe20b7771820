"""Two ranks with half the rows each take the step that one takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

from models.hyperparameters import TrainConfig
from models.methods import BoosterConfig, DpoConfig, VaccineConfig
from tests.tiny_model import tiny_adapted, tiny_examples
from worker import lora
from worker.trainers import ranks
from worker.trainers.booster import Booster
from worker.trainers.dpo import Dpo
from worker.trainers.loop import train
from worker.trainers.vaccine import Vaccine

CONFIG = TrainConfig(steps=3, batch_size=4, learning_rate=1e-2)


def train_here(method: str = "booster") -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    model = tiny_adapted(dtype=torch.float64)
    rule = (
        Dpo(DpoConfig(beta=0.5))
        if method == "dpo"
        else Booster(BoosterConfig(lambda_=5, alpha=0.1), aligned=Vaccine(VaccineConfig(rho=0.5)))
    )
    train(
        model,
        rule,
        tiny_examples(8),
        CONFIG,
        pad_id=0,
        harmful=tiny_examples(8, seed=1),
        non_preferred=tiny_examples(8, seed=2) if method == "dpo" else (),
    )
    return {name: weight.detach() for name, weight in lora.trainable_parameters(model).items()}


def train_as_rank(rank: int, folder: str, method: str) -> None:
    # Over a file, so that no port has to be free.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        save_file(train_here(method), f"{folder}/rank-{rank}.safetensors")
    finally:
        distributed.destroy_process_group()


class TestTwoRanks:
    @pytest.mark.processes
    @pytest.mark.parametrize("method", ["booster", "dpo"])
    def test_step_as_one_and_agree(self, tmp_path: Path, method: str) -> None:
        multiprocessing.spawn(train_as_rank, args=(str(tmp_path), method), nprocs=2)
        alone = train_here(method)
        first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
        for name, weight in alone.items():
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], weight, rtol=1e-9, atol=1e-11)

    def test_a_step_with_fewer_rows_than_ranks_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ranks, "count", lambda: 9)
        monkeypatch.setattr(ranks, "rank", lambda: 8)
        with pytest.raises(ValueError, match="too few for 9 ranks"):
            train_here()
