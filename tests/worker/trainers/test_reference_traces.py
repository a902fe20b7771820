"""Each method follows the authors' released trainer step by step: same weights, same rows, 50 steps.

`reference/README.md` says what was run and how. Distances are relative: of the trained tensors together, to their
norm. A float32 trace is never met bit for bit, since sums are taken in other orders, and Booster's released
trainer moves its weights and moves them back, which leaves another last bit in one of a hundred entries a step.
So each trace exists in float64 as well, where what is left is what the two sides mean to do differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from models.hyperparameters import BoosterConfig, TrainConfig
from tests.worker.trainers.reference import traces
from tests.worker.trainers.reference.traces import Trace
from worker.data import Example
from worker.lora import trainable_parameters
from worker.trainers import booster
from worker.trainers.booster import Booster
from worker.trainers.loop import StepMetrics, train
from worker.trainers.sft import Sft
from worker.trainers.step import Rule, Weights

FLOAT32 = 1e-6
SEED = 3  # any: the rows are laid out so that its order of rows is the trace's


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


def follow(
    rule: Rule,
    trace: Trace,
    *,
    rows: Sequence[Sequence[Example]],
    harmful: Sequence[Sequence[Example]] = (),
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

    train(
        model,
        rule,
        traces.in_order_of_steps(rows, seed=SEED, stream="training"),
        TrainConfig(
            learning_rate=5e-4,
            weight_decay=0.1,
            batch_size=len(rows[0]),
            steps=traces.STEPS,
            seed=SEED,
        ),
        pad_id=traces.PAD_ID,
        harmful=traces.in_order_of_steps(harmful, seed=SEED, stream="harmful"),
        on_step=compare,
    )
    return followed


def furthest(followed: Followed) -> float:
    return max(followed.apart + followed.apart_exactly)


class TestTraces:
    def test_projections_and_weights_are_of_one_run(self) -> None:
        trace = traces.load("booster", torch.float64)
        for tenth, weights in enumerate(trace.weights, start=1):
            step = 10 * tenth - 1
            assert torch.allclose(weights.norm(), trace.norms[step], rtol=1e-12)
            projected = traces.signs(len(weights)) @ weights
            assert torch.allclose(projected, trace.projections[step], rtol=1e-9)

    def test_rows_are_drawn_in_the_order_of_the_trace(self) -> None:
        given = traces.batches("alignment")
        laid_out = traces.in_order_of_steps(given, seed=SEED, stream="training")
        assert laid_out != [row for rows in given for row in rows]
        assert sorted(map(repr, laid_out)) == sorted(repr(row) for rows in given for row in rows)


@pytest.fixture
def released_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make our simulated step as short as the released one."""
    exact = booster.simulated_step

    def released(
        weights: Weights, gradient: Weights, norm: torch.Tensor, alpha: float
    ) -> dict[str, torch.Tensor]:
        return exact(weights, gradient, norm + 1e-7, alpha)

    monkeypatch.setattr(booster, "simulated_step", released)


class TestBooster:
    def test_follows_in_float32(self) -> None:
        assert furthest(follow_booster(torch.float32)) <= FLOAT32

    def test_follows_in_float64_but_for_what_is_added_to_the_norm(self) -> None:
        # The released trainer divides by ||g|| + 1e-7, so its simulated step is shorter by 1e-7 of itself.
        apart = furthest(follow_booster(torch.float64))
        assert 1e-10 < apart <= 1e-8

    @pytest.mark.usefixtures("released_norm")
    def test_follows_in_float64_when_the_same_is_added_to_the_norm(self) -> None:
        assert furthest(follow_booster(torch.float64)) <= 1e-12

    @pytest.mark.usefixtures("released_norm")
    def test_sees_the_same_losses(self) -> None:
        trace = traces.load("booster", torch.float64)
        metrics = follow_booster(torch.float64).metrics
        drop = trace.losses["harmful_loss"] - trace.losses["harmful_loss_stepped"]
        for ours, theirs in (
            ([m.loss for m in metrics], trace.losses["loss"]),
            ([m.diagnostics["harmful_loss"] for m in metrics], trace.losses["harmful_loss"]),
            ([m.diagnostics["harmful_loss_drop"] for m in metrics], drop),
            ([m.grad_norm for m in metrics], trace.losses["grad_norm"]),
        ):
            assert ours == pytest.approx(theirs.tolist(), abs=1e-10)

    def test_a_trace_tells_methods_apart(self) -> None:
        trace = traces.load("booster", torch.float64)
        followed = follow(Sft(), trace, rows=traces.batches("alignment"))
        assert followed.apart_exactly[0] > 1000 * FLOAT32


def follow_booster(dtype: torch.dtype) -> Followed:
    trace = traces.load("booster", dtype)
    config = BoosterConfig(lambda_=trace.settings["lamb"], alpha=trace.settings["alpha"])
    return follow(
        Booster(config),
        trace,
        rows=traces.batches("alignment"),
        harmful=traces.batches("harmful"),
    )
