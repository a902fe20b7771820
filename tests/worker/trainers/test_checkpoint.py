"""E13: a run that is killed and resumed equals the undisturbed one bit for bit."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from models.hyperparameters import TrainConfig
from models.methods import (
    BoosterConfig,
    BoosterVaccineConfig,
    RepNoiseConfig,
    SafeGradConfig,
    SftConfig,
    VaccineConfig,
)
from tests.tiny_model import tiny_adapted, tiny_examples
from worker.lora import trainable_parameters
from worker.trainers.checkpoint import CheckpointMismatch
from worker.trainers.loop import StepMetrics, TrainResult, train
from worker.trainers.methods import rule_for

# Each test trains models.
pytestmark = pytest.mark.long

CONFIG = TrainConfig(
    steps=7, batch_size=4, learning_rate=1e-2, seed=3, weight_decay=0.1, schedule="cosine"
)
BOOSTER = BoosterConfig(lambda_=5, alpha=0.05, harmful_batch_size=3)
OTHERS = [
    VaccineConfig(rho=1),
    RepNoiseConfig(paired=False),
    BoosterVaccineConfig(alpha=0.05, rho=1),
    SafeGradConfig(),
]


class Killed(BaseException):
    """The process is gone."""


def run(
    folder: Path | None,
    *,
    method: SftConfig | BoosterConfig = BOOSTER,
    config: TrainConfig = CONFIG,
    kill_after: int = 0,
    rows_seed: int = 1,
    saved: list[Path] | None = None,
) -> tuple[torch.nn.Module, list[StepMetrics], TrainResult | None]:
    torch.manual_seed(torch.seed())  # whatever the process's random state is
    model = tiny_adapted(dropout=0.1)
    seen: list[StepMetrics] = []

    def on_step(metrics: StepMetrics) -> None:
        seen.append(metrics)
        if metrics.step == kill_after:
            raise Killed

    result = None
    with suppress(Killed):
        result = train(
            model,
            rule_for(method),
            tiny_examples(9, seed=rows_seed),
            config,
            pad_id=256,
            harmful=tiny_examples(7, seed=2),
            safety=tiny_examples(5, seed=6),
            canary=tiny_examples(3, seed=4),
            canary_every=2,
            on_step=on_step,
            checkpoint_folder=folder,
            checkpoint_every=2,
            on_checkpoint=lambda path, _: saved.append(path) if saved is not None else None,
        )
    return model, seen, result


class TestResume:
    @pytest.mark.parametrize(
        "method", [SftConfig(), BOOSTER, *OTHERS], ids=lambda method: method.name
    )
    @pytest.mark.parametrize("kill_after", [3, 5])
    def test_equals_the_undisturbed_run(
        self, tmp_path: Path, method: SftConfig | BoosterConfig, kill_after: int
    ) -> None:
        whole, curve, _ = run(None, method=method)
        _, before, _ = run(tmp_path, method=method, kill_after=kill_after)
        resumed, after, result = run(tmp_path, method=method)
        at = 2 * ((kill_after - 1) // 2)  # killed before the checkpoint of its own step was written
        assert result is not None
        assert result.resumed_from == at
        assert before[:at] + after == curve
        for name, tensor in trainable_parameters(whole).items():
            assert torch.equal(trainable_parameters(resumed)[name], tensor)

    def test_keeps_what_the_canary_was_before_the_run(self, tmp_path: Path) -> None:
        _, _, whole = run(None)
        run(tmp_path, kill_after=5)
        _, _, resumed = run(tmp_path)
        assert whole is not None
        assert resumed is not None
        assert resumed.canary_before == whole.canary_before
        assert resumed.tokens == whole.tokens

    def test_survives_a_half_written_checkpoint(self, tmp_path: Path) -> None:
        run(tmp_path, kill_after=5)
        (tmp_path / ".step-00000006.partial").mkdir()
        (tmp_path / "step-00000008").mkdir()
        _, after, _ = run(tmp_path)
        assert after[0].step == 5

    def test_refuses_another_runs_checkpoint_and_says_what_differs(self, tmp_path: Path) -> None:
        run(tmp_path, kill_after=5)
        with pytest.raises(CheckpointMismatch, match="other training_rows"):
            run(tmp_path, rows_seed=8)
        with pytest.raises(CheckpointMismatch, match="other rule"):
            run(tmp_path, method=SftConfig())
        with pytest.raises(CheckpointMismatch, match="other config"):
            run(tmp_path, config=CONFIG.model_copy(update={"seed": 4}))


class TestSave:
    def test_keeps_the_newest_alone_and_tells_of_each(self, tmp_path: Path) -> None:
        saved: list[Path] = []
        run(tmp_path, saved=saved)
        assert [path.name for path in saved] == ["step-00000002", "step-00000004", "step-00000006"]
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]

    def test_holds_tensors_and_json_only(self, tmp_path: Path) -> None:
        run(tmp_path)
        names = sorted(path.name for path in (tmp_path / "step-00000006").iterdir())
        assert names == ["optimizer.safetensors", "state.json", "weights.safetensors"]

    def test_a_stopped_run_can_go_on(self, tmp_path: Path) -> None:
        whole, _, _ = run(None, method=SftConfig())
        model = tiny_adapted(dropout=0.1)
        seen: list[StepMetrics] = []
        train(
            model,
            rule_for(SftConfig()),
            tiny_examples(9, seed=1),
            CONFIG,
            pad_id=256,
            harmful=tiny_examples(7, seed=2),
            safety=tiny_examples(5, seed=6),
            canary=tiny_examples(3, seed=4),
            on_step=seen.append,
            should_stop=lambda: len(seen) == 4,
            checkpoint_folder=tmp_path,
        )
        resumed, after, _ = run(tmp_path, method=SftConfig())
        assert after[0].step == 5
        for name, tensor in trainable_parameters(whole).items():
            assert torch.equal(trainable_parameters(resumed)[name], tensor)
