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
from worker.trainers.repnoise import RepNoise, masked_cross_entropy, squared_mmd
from worker.trainers.sft import Sft
from worker.trainers.step import Rule, Step, Weights
from worker.trainers.vaccine import Vaccine

IN_FLOAT32 = 1e-6
EXACTLY = 1e-12  # in float64
ADDED = 1e-7  # to the norms, by the released code
LAYERS = 2
SEED = 3  # any: the rows are laid out so that its order of rows is the trace's

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, EXACTLY)]
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

    @pytest.mark.parametrize("name", ["booster", "booster_vaccine", "vaccine", "repnoise_port"])
    def test_tell_their_method_from_plain_sft(self, name: str) -> None:
        trace = traces.load(name, torch.float64)
        rows = [step[:5] for step in batches("alignment")] if "port" in name else None
        followed = follow(Sft(), trace, rows or batches("alignment"))
        assert followed.apart_exactly[0] > 100 * IN_FLOAT32


def follow_booster(dtype: torch.dtype) -> tuple[Followed, Trace]:
    trace = traces.load("booster", dtype)
    config = BoosterConfig(lambda_=trace.settings["lamb"], alpha=trace.settings["alpha"])
    given = {"harmful": batches("harmful")}
    return follow(rule_for(config), trace, batches("alignment"), **given), trace


class TestBooster:
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, 1e-8)]
    )
    def test_follows(self, dtype: torch.dtype, bound: float) -> None:
        assert follow_booster(dtype)[0].furthest <= bound

    @pytest.mark.usefixtures("released_norms")
    def test_follows_exactly_with_the_released_norm(self) -> None:
        followed, trace = follow_booster(torch.float64)
        assert followed.furthest <= EXACTLY
        assert_reported(followed, trace, loss="loss", harmful_loss="harmful_loss")
        drops = [m.diagnostics["harmful_loss_drop"] for m in followed.metrics]
        theirs = trace.losses["harmful_loss"] - trace.losses["harmful_loss_stepped"]
        assert drops == pytest.approx(theirs.tolist(), abs=1e-12)


def follow_vaccine(dtype: torch.dtype) -> tuple[Followed, Trace]:
    trace = traces.load("vaccine", dtype)
    rule = rule_for(VaccineConfig(rho=trace.settings["rho"]))
    return follow(rule, trace, batches("alignment")), trace


class TestVaccine:
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, 1e-8)]
    )
    def test_follows(self, dtype: torch.dtype, bound: float) -> None:
        assert follow_vaccine(dtype)[0].furthest <= bound

    @pytest.mark.usefixtures("released_norms")
    def test_follows_exactly_with_the_released_norm(self) -> None:
        followed, trace = follow_vaccine(torch.float64)
        assert followed.furthest <= EXACTLY
        assert_reported(followed, trace, loss="loss")


def follow_both(dtype: torch.dtype) -> tuple[Followed, Trace]:
    trace = traces.load("booster_vaccine", dtype)
    config = BoosterVaccineConfig(
        lambda_=trace.settings["lamb"], alpha=trace.settings["alpha"], rho=trace.settings["rho"]
    )
    given = {"harmful": batches("harmful")}
    return follow(rule_for(config), trace, batches("alignment"), **given), trace


class TestBoosterWithVaccine:
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.float32, IN_FLOAT32), (torch.float64, 1e-8)]
    )
    def test_follows(self, dtype: torch.dtype, bound: float) -> None:
        assert follow_both(dtype)[0].furthest <= bound

    @pytest.mark.usefixtures("released_norms")
    def test_follows_exactly_with_the_released_norms(self) -> None:
        followed, trace = follow_both(torch.float64)
        assert followed.furthest <= EXACTLY
        assert_reported(followed, trace, loss="loss", harmful_loss="harmful_loss")


class RecordedNoise:
    """The noise of the traces, layer after layer and step after step."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        step, layer = divmod(self.draws, LAYERS)
        self.draws += 1
        return traces.gaussian(step, layer, like.shape).to(like.dtype)


def repnoise(trace: Trace, *, paired: bool) -> RepNoise:
    return RepNoise(
        RepNoiseConfig(
            alpha=trace.settings["alpha"],
            beta=trace.settings["beta"],
            paired=paired,
            mask="reference",
        ),
        gaussian=RecordedNoise(),
    )


class TestRepNoise:
    @PRECISIONS
    def test_follows_with_pairs(self, dtype: torch.dtype, bound: float) -> None:
        trace = traces.load("repnoise", dtype)
        refusals = batches("paired_refusal")
        followed = follow(
            repnoise(trace, paired=True),
            trace,
            refusals,
            harmful=batches("paired_harmful"),
            refusals=refusals,
        )
        assert followed.furthest <= bound
        if dtype == torch.float64:
            names = {"loss": "harmless", "noise_distance": "noise", "harmful_loss": "harmful_loss"}
            assert_reported(followed, trace, **names)

    @PRECISIONS
    def test_follows_without_pairs(self, dtype: torch.dtype, bound: float) -> None:
        trace = traces.load("repnoise_port", dtype)
        refusals, harmful = (
            [step[:5] for step in batches(name)] for name in ("alignment", "harmful")
        )
        followed = follow(repnoise(trace, paired=False), trace, refusals, harmful=harmful)
        assert followed.furthest <= bound
        if dtype == torch.float64:
            names = {"loss": "harmless", "noise_distance": "noise", "harmful_loss": "harmful_loss"}
            assert_reported(followed, trace, **names)

    def test_reads_the_released_mask_as_worked_out_by_hand(self) -> None:
        # Position 0 is unmarked: its scores become 0, so token 1 costs ln 3 whatever they were.
        # Token 2 has id 0 and is ignored. Token 3 is read off (0, 0, ln 2): probability 2/4, ln 2.
        scores = [[9.0, 0, 0], [5, 5, 0], [0, 0, 2**-1], [7, 7, 7]]
        logits = torch.tensor([scores], dtype=torch.float64)
        logits[0, 2, 2] = torch.tensor(2.0, dtype=torch.float64).log()
        ids, mask = torch.tensor([[2, 1, 0, 2]]), torch.tensor([[False, True, True, True]])
        found = masked_cross_entropy(logits, ids, mask, "reference")
        assert float(found) == pytest.approx(0.8958797346140275, abs=1e-15)  # (ln 3 + ln 2) / 2

    def test_measures_the_released_distance_between_rows(self) -> None:
        # x = (0, 1), y = (1, 3). The released function gave this number; by hand: the squared distances of
        # different points add up to 38, over 4 * 3 of them and a fourth of that is the narrowest width.
        x, y = torch.tensor([[0.0], [1]]).double(), torch.tensor([[1.0], [3]]).double()
        assert float(squared_mmd(x, y)) == pytest.approx(2.1027206076035005, abs=1e-14)


class TestLisa:
    @PRECISIONS
    def test_follows(self, dtype: torch.dtype, bound: float) -> None:
        trace = traces.load("lisa", dtype)
        config = LisaConfig(
            rho=trace.settings["rho"],
            alignment_steps=int(trace.settings["alignment_step"]),
            user_steps=int(trace.settings["finetune_step"]),
        )
        followed = follow(rule_for(config), trace, batches("harmful"), safety=batches("alignment"))
        assert followed.furthest <= bound
        if dtype == torch.float64:
            assert_reported(followed, trace, loss="clean_loss")
