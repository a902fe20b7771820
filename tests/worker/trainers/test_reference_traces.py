"""Each method follows the authors' released trainer step by step: same weights, same rows, 50 steps.

`reference/README.md` says what was run and how. Distances are relative: of the trained tensors together, to their
norm. No float32 trace is met bit for bit: sums are taken in another order, and Booster's released trainer moves its
weights and moves them back, which leaves other last bits in some of them. So every trace exists in float64 too,
where only that shows which the two sides mean to do differently: the released Booster and Vaccine add 1e-7 to the
norm that they divide by. With the same added to ours, nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from models.hyperparameters import TrainConfig
from models.methods import (
    BoosterConfig,
    BoosterVaccineConfig,
    LisaConfig,
    RepNoiseConfig,
    VaccineConfig,
)
from tests.worker.trainers.reference import traces
from tests.worker.trainers.reference.traces import Trace, batches
from worker.data import Example
from worker.lora import trainable_parameters
from worker.trainers import attacker
from worker.trainers.loop import StepMetrics, train
from worker.trainers.methods import rule_for
from worker.trainers.repnoise import RepNoise
from worker.trainers.sft import Sft
from worker.trainers.step import Rule, Step, Weights
from worker.trainers.vaccine import Vaccine

pytestmark = pytest.mark.long

IN_FLOAT32 = 1e-6
IN_FLOAT64 = 1e-12
BUT_FOR_THE_NORMS = 2e-8  # in float64
ADDED = 1e-7  # to the norms, by the released code
LAYERS = 2
SEED = 3  # any: the rows are laid out so that its order of rows is the trace's

CONFIGS = {
    "booster": BoosterConfig,
    "vaccine": VaccineConfig,
    "booster_vaccine": BoosterVaccineConfig,
}
NORMED = pytest.mark.parametrize("name", list(CONFIGS))
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, IN_FLOAT64)]
)


@dataclass(frozen=True, slots=True)
class Followed:
    """How far our run was from the trace.

    Attributes:
        apart: relative distance of the trained tensors after each step, seen through the projections.
        apart_exactly: the same after steps 10, 20, ... 50, over all entries.
        metrics: what our run reported.
    """

    apart: list[float]
    apart_exactly: list[float]
    metrics: list[StepMetrics]

    @property
    def furthest(self) -> float:
        assert (len(self.apart), len(self.apart_exactly)) == (50, 5)
        return max(self.apart + self.apart_exactly)


def follow(
    rule: Rule,
    trace: Trace,
    rows: Sequence[Sequence[Example]],
    *,
    harmful: Sequence[Sequence[Example]] = (),
    refusals: Sequence[Sequence[Example]] = (),
    safety: Sequence[Sequence[Example]] = (),
) -> Followed:
    """Train by our loop on the trace's rows, from its start."""
    model = traces.start_model(trace.weights.dtype)
    weights = trainable_parameters(model)
    signs = traces.signs(trace.weights.shape[1])
    followed = Followed([], [], [])

    def compare(metrics: StepMetrics) -> None:
        ours, step = traces.flat(weights).double(), metrics.step
        size = trace.norms[step - 1]
        seen = (signs @ ours - trace.projections[step - 1]).square().mean().sqrt()
        followed.apart.append(float(seen / size))
        if step % 10 == 0:
            theirs = trace.weights[step // 10 - 1].double()
            followed.apart_exactly.append(float((ours - theirs).norm() / size))
        followed.metrics.append(metrics)

    def laid_out(steps: Sequence[Sequence[Example]], stream: str) -> list[Example]:
        return traces.in_order_of_steps(steps, seed=SEED, stream=stream)

    train(
        model,
        rule,
        laid_out(rows, "training"),
        TrainConfig(
            learning_rate=5e-4,
            weight_decay=0.1,
            batch_size=len(rows[0]),
            steps=traces.STEPS,
            seed=SEED,
        ),
        pad_id=traces.PAD_ID,
        harmful=laid_out(harmful, "harmful"),
        refusals=laid_out(refusals, "harmful"),
        safety=laid_out(safety, "safety"),
        on_step=compare,
    )
    return followed


@pytest.fixture
def released_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make our simulated step and our shift as short as the released ones."""
    step_along, shifts = attacker.step_along, Vaccine._shifts

    def shorter_step(
        weights: Weights, direction: Weights, norm: torch.Tensor, length: float | torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return step_along(weights, direction, norm + ADDED, length)

    def shorter_shifts(rule: Vaccine, step: Step) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        found, norm = shifts(rule, step)
        return [[eps * (norm / (norm + ADDED)) for eps in parts] for parts in found], norm

    monkeypatch.setattr(attacker, "step_along", shorter_step)
    monkeypatch.setattr(Vaccine, "_shifts", shorter_shifts)


def assert_reported(followed: Followed, trace: Trace, **names: str) -> None:
    """Check what our run reported: our names against the trace's."""
    for ours, theirs in {"grad_norm": "grad_norm", **names}.items():
        reported = [
            m.diagnostics[ours] if ours in m.diagnostics else getattr(m, ours)
            for m in followed.metrics
        ]
        assert reported == pytest.approx(trace.losses[theirs].tolist(), rel=1e-10), ours


class TestTraces:
    def test_projections_and_weights_are_of_one_run(self) -> None:
        trace = traces.load("booster", torch.float64)
        for tenth, weights in enumerate(trace.weights, start=1):
            step = 10 * tenth - 1
            assert torch.allclose(weights.norm(), trace.norms[step], rtol=1e-12)
            projected = traces.signs(len(weights)) @ weights
            assert torch.allclose(projected, trace.projections[step], rtol=1e-9)

    def test_rows_are_drawn_in_the_order_of_the_trace(self) -> None:
        given = [row for rows in batches("alignment") for row in rows]
        laid_out = traces.in_order_of_steps(batches("alignment"), seed=SEED, stream="training")
        assert laid_out != given
        assert sorted(map(repr, laid_out)) == sorted(map(repr, given))

    @NORMED
    def test_tell_their_method_from_plain_sft(self, name: str) -> None:
        followed = follow(Sft(), traces.load(name, torch.float64), batches("alignment"))
        assert followed.apart_exactly[0] > 100 * IN_FLOAT32


def follow_alignment(name: str, dtype: torch.dtype) -> tuple[Followed, Trace]:
    trace = traces.load(name, dtype)
    rule = rule_for(CONFIGS[name].model_validate(trace.settings))
    return follow(rule, trace, batches("alignment"), harmful=batches("harmful")), trace


class TestBoosterAndVaccine:
    """The methods that divide by a norm: each alone, and both together."""

    @NORMED
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, BUT_FOR_THE_NORMS)]
    )
    def test_follows(self, name: str, dtype: torch.dtype, bound: float) -> None:
        assert follow_alignment(name, dtype)[0].furthest <= bound

    @NORMED
    @pytest.mark.usefixtures("released_norms")
    def test_follows_exactly_with_the_released_norms(self, name: str) -> None:
        followed, trace = follow_alignment(name, torch.float64)
        assert followed.furthest <= IN_FLOAT64
        assert_reported(followed, trace, loss="loss")
        if "booster" in name:
            assert_reported(followed, trace, harmful_loss="harmful_loss")
            drops = [m.diagnostics["harmful_loss_drop"] for m in followed.metrics]
            theirs = trace.losses["harmful_loss"] - trace.losses["harmful_loss_stepped"]
            assert drops == pytest.approx(theirs.tolist(), abs=1e-12)


class RecordedNoise:
    """The noise of the traces, layer after layer and step after step."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        step, layer = divmod(self.draws, LAYERS)
        self.draws += 1
        return traces.gaussian(step, layer, like.shape).to(like.dtype)


def repnoise(trace: Trace, **config: object) -> RepNoise:
    return RepNoise(
        RepNoiseConfig.model_validate({**trace.settings, **config}), gaussian=RecordedNoise()
    )


def follow_pairs(rule: RepNoise, trace: Trace) -> Followed:
    refusals, harmful = batches("paired_refusal"), batches("paired_harmful")
    return follow(rule, trace, refusals, harmful=harmful, refusals=refusals)


def follow_without_pairs(rule: RepNoise, trace: Trace) -> Followed:
    refusals, harmful = ([rows[:5] for rows in batches(n)] for n in ("alignment", "harmful"))
    return follow(rule, trace, refusals, harmful=harmful)


class TestRepNoise:
    @PRECISIONS
    @pytest.mark.parametrize("paired", [True, False])
    def test_follows(self, paired: bool, dtype: torch.dtype, bound: float) -> None:
        trace = traces.load("repnoise" if paired else "repnoise_port", dtype)
        rule = repnoise(trace, paired=paired, mask="reference")
        followed = (follow_pairs if paired else follow_without_pairs)(rule, trace)
        assert followed.furthest <= bound
        if dtype == torch.float64:
            assert_reported(followed, trace, loss="harmless", noise_distance="noise")
            assert_reported(followed, trace, harmful_loss="harmful_loss")

    def test_the_plain_mask_is_another_one(self) -> None:
        trace = traces.load("repnoise", torch.float64)
        assert follow_pairs(repnoise(trace, mask="answers"), trace).furthest > 100 * IN_FLOAT32


class TestLisa:
    @PRECISIONS
    def test_follows(self, dtype: torch.dtype, bound: float) -> None:
        trace = traces.load("lisa", dtype)
        rule = rule_for(LisaConfig.model_validate(trace.settings))
        followed = follow(rule, trace, batches("harmful"), safety=batches("alignment"))
        assert followed.furthest <= bound
        if dtype == torch.float64:
            assert_reported(followed, trace, loss="clean_loss")
