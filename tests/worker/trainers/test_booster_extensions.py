"""Booster's extensions against arithmetic worked out by hand, and against what they become when off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from models.hyperparameters import LoraConfig
from models.methods import (
    Attacker,
    BoosterConfig,
    BoosterVaccineConfig,
    OuterLoss,
    SafeGradConfig,
    VaccineConfig,
)
from tests.tiny_model import tiny_adapted, tiny_examples, tiny_model
from worker import lora
from worker.data import IGNORED, Batch, collate
from worker.trainers.blend import blend, without_part_against
from worker.trainers.booster import Booster
from worker.trainers.methods import rule_for
from worker.trainers.objective import TokenLoss
from worker.trainers.safegrad import SafeGrad
from worker.trainers.step import Direction, Measured, Step, Weights, global_norm, inner_product
from worker.trainers.vaccine import Vaccine
from worker.weights import train_linear_weights, trained_weights

Loss = Callable[[torch.Tensor], torch.Tensor]


class Formula:
    """Losses over one vector by the name of the noise; counts the passes and keeps the points."""

    def __init__(self, **losses: Loss) -> None:
        self.losses = losses
        self.points: list[tuple[str, torch.Tensor]] = []

    def __call__(self, weights: Weights, batches: Sequence[Batch], *, noise: str) -> Measured:
        point = weights["w"].detach().requires_grad_()
        self.points.append((noise, point.detach()))
        loss = self.losses[noise](point)
        (slope,) = torch.autograd.grad(loss, point)
        return Measured(loss.detach(), {"w": slope}, torch.zeros(()), 1)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


W = vector(1.5, 4.0)


def bowl(w: torch.Tensor) -> torch.Tensor:
    return w[0] ** 2 + w[1] ** 2 / 2  # at W: slope (3, 4), of length 5


def slope(w: torch.Tensor) -> torch.Tensor:
    return w[0] - w[1]


def direction(
    loss: Formula | None = None, *, index: int = 0, total: int = 1, seed: int = 0, **config: object
) -> Direction:
    rule = Booster(BoosterConfig.model_validate(config))
    loss = loss or Formula(rows=slope, harmful=bowl)
    return rule(Step(index, total, {"w": W}, [], loss, lambda _: [], seed=seed))


class TestWhenItIsTaken:
    def passes(self, total: int, **config: object) -> list[int]:
        taken = []
        for index in range(total):
            loss = Formula(rows=slope, harmful=bowl)
            direction(loss, index=index, total=total, **config)
            taken.append(len(loss.points))
        return taken

    def test_late(self) -> None:
        assert self.passes(10, start=0.7) == [1] * 7 + [3] * 3

    def test_lazy(self) -> None:
        assert self.passes(7, every=3) == [3, 1, 1, 3, 1, 1, 3]

    def test_late_and_lazy_begin_with_a_penalty(self) -> None:
        assert self.passes(10, start=0.5, every=2) == [1] * 5 + [3, 1, 3, 1, 3]

    def test_lazy_counts_for_the_steps_it_skips(self) -> None:
        always, lazy = direction(), direction(every=4)
        f = vector(1, -1)
        torch.testing.assert_close(lazy.gradient["w"] - f, 4 * (always.gradient["w"] - f))

    @pytest.mark.parametrize("off", [{"lambda": 0}, {"ratio": 0}, {"ratio": 0, "lambda": 9}])
    def test_off_is_one_pass(self, off: dict[str, object]) -> None:
        assert self.passes(2, **off) == [1, 1]


class TestAttacker:
    def walked(self, **config: object) -> list[torch.Tensor]:
        loss = Formula(rows=slope, harmful=bowl)
        direction(loss, **config)
        return [point for noise, point in loss.points if noise == "harmful"]

    def test_one_step_by_hand(self) -> None:
        assert [p.tolist() for p in self.walked(alpha=0.5)] == [
            [1.5, 4.0],
            pytest.approx([1.2, 3.6]),
        ]

    def test_inner_steps_share_alpha_and_turn_with_the_slope(self) -> None:
        start, middle, end = self.walked(alpha=0.5, inner_steps=2)
        # (1.5, 4) - 0.25 (0.6, 0.8) = (1.35, 3.8); slope there (2.7, 3.8).
        assert start.tolist() == [1.5, 4.0]
        assert middle.tolist() == pytest.approx([1.35, 3.8])
        length = math.hypot(2.7, 3.8)
        assert end.tolist() == pytest.approx(
            [1.35 - 0.25 * 2.7 / length, 3.8 - 0.25 * 3.8 / length]
        )

    def test_signs_move_every_weight_alike(self) -> None:
        _, after = self.walked(alpha=0.5, inner_rule="sign")
        side = 0.5 / math.sqrt(2)
        assert after.tolist() == pytest.approx([1.5 - side, 4.0 - side])

    def test_relative_alpha_is_a_share_of_the_weights_norm(self) -> None:
        _, after = self.walked(alpha=0.1, is_alpha_relative=True)
        assert float(torch.linalg.norm(after - W)) == pytest.approx(0.1 * math.hypot(1.5, 4.0))

    def test_random_alpha_is_private_to_the_step_and_stays_in_its_bounds(self) -> None:
        def drawn(index: int, seed: int = 0) -> float:
            loss = Formula(rows=slope, harmful=bowl)
            direction(loss, index=index, total=99, seed=seed, alpha=0.1, alpha_spread=4)
            return float(torch.linalg.norm(loss.points[-1][1] - W))

        lengths = [drawn(index) for index in range(40)]
        assert min(lengths) >= 0.025 - 1e-12
        assert max(lengths) <= 0.4 + 1e-12
        assert min(lengths) < 0.05
        assert max(lengths) > 0.2
        assert drawn(3) == drawn(3)
        assert drawn(3) != drawn(3, seed=1)


class TestFreshAdapter:
    ROWS, HARMFUL = tiny_examples(4, seed=1), tiny_examples(4, seed=2)

    def step(self, model: torch.nn.Module, index: int = 0) -> Step:
        return Step(
            index,
            10,
            trained_weights(model),
            [collate(self.ROWS, 256)],
            TokenLoss(model).at(index),
            lambda _: [collate(self.HARMFUL, 256)],
            attacker={n: p for n, p in model.named_parameters() if ".attacker." in n},
        )

    @pytest.fixture(params=["adapter", "full"])
    def model(self, request: pytest.FixtureRequest) -> torch.nn.Module:
        if request.param == "adapter":
            return lora.attach_attacker(tiny_adapted(dtype=torch.float64), LoraConfig(r=2))
        base = tiny_model(dtype=torch.float64)
        train_linear_weights(base)
        return lora.attach_attacker(base, LoraConfig(r=2))

    def test_changes_neither_the_model_nor_what_is_trained(self) -> None:
        plain = tiny_adapted()
        names = set(trained_weights(plain))
        batch = collate(self.ROWS, 256)
        before = plain(input_ids=batch.input_ids).logits
        with_attacker = lora.attach_attacker(plain, LoraConfig(r=2))
        assert set(trained_weights(with_attacker)) == names
        assert torch.equal(with_attacker(input_ids=batch.input_ids).logits, before)

    def test_penalty_is_the_difference_between_without_and_with_the_attackers_step(
        self, model: torch.nn.Module
    ) -> None:
        config = BoosterConfig(lambda_=3, alpha=0.1, attacker=Attacker.FRESH_ADAPTER)
        found = Booster(config)(self.step(model))
        assert set(found.gradient) == set(trained_weights(model))
        added = {n: found.gradient[n] - found.measured.gradient[n] for n in found.gradient}
        assert float(global_norm(added)) > 0
        assert float(found.diagnostics["harmful_loss_drop"]) > 0

    def test_is_drawn_anew_every_so_many_steps(self, model: torch.nn.Module) -> None:
        config = BoosterConfig(alpha=0.1, attacker=Attacker.FRESH_ADAPTER, attacker_every=2)
        drops = [
            float(Booster(config)(self.step(model, index)).diagnostics["harmful_grad_norm"])
            for index in range(4)
        ]
        assert drops[0] == drops[1]
        assert drops[2] == drops[3]
        assert drops[0] != drops[2]

    def test_full_weights_feel_the_whole_step(self) -> None:
        # With A of full rank and orthogonal, B's step is a step of the weights: compare with the formula.
        base = tiny_model(dtype=torch.float64)
        train_linear_weights(base)
        model = lora.attach_attacker(base, LoraConfig(r=2))
        step = self.step(model)
        config = BoosterConfig(lambda_=1, alpha=1e-3, attacker=Attacker.FRESH_ADAPTER)
        found = Booster(config)(step)
        # dh = -alpha ||g_B|| to first order: the drop is what the attacker's own slope promises.
        promised = 1e-3 * float(found.diagnostics["harmful_grad_norm"])
        assert float(found.diagnostics["harmful_loss_drop"]) == pytest.approx(promised, rel=1e-2)

    def test_without_an_adapter_it_says_so(self) -> None:
        model = tiny_adapted()
        config = BoosterConfig(attacker=Attacker.FRESH_ADAPTER)
        with pytest.raises(ValueError, match="no adapter for the simulated attacker"):
            Booster(config)(self.step(model))


class TestOuterLoss:
    def test_refusal_asks_for_f_after_the_step(self) -> None:
        loss = Formula(rows=lambda w: w[0] ** 2, harmful=bowl)
        found = direction(loss, **{"lambda": 5, "alpha": 0.5, "outer_loss": OuterLoss.REFUSAL})
        # grad f(w) = (3, 0); w' = (1.2, 3.6): grad f(w') = (2.4, 0).
        assert found.gradient["w"].tolist() == pytest.approx([3 + 5 * 2.4, 0])
        assert [noise for noise, _ in loss.points] == ["rows", "harmful", "rows"]

    def test_ascent_asks_for_a_high_harmful_loss_after_the_step(self) -> None:
        found = direction(**{"lambda": 5, "alpha": 0.5, "outer_loss": OuterLoss.ASCENT})
        # w' = (1.2, 3.6), h(w') = 7.92, grad h(w') = (2.4, 3.6); grad f = (1, -1).
        assert found.gradient["w"].tolist() == pytest.approx(
            [1 - 5 * 2.4 / 7.92, -1 - 5 * 3.6 / 7.92]
        )

    def test_collapse_asks_for_one_token_everywhere(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        asked: list[Batch] = []
        inner = TokenLoss(model)

        def listening(weights: Weights, batches: Sequence[Batch], **kw: str) -> Measured:
            asked.extend(batches)
            return inner(weights, batches, **kw)

        rows, harmful = collate(tiny_examples(3, seed=1), 256), collate(tiny_examples(3), 256)
        rule = Booster(BoosterConfig(outer_loss=OuterLoss.COLLAPSE))
        rule(Step(0, 1, trained_weights(model), [rows], listening, lambda _: [harmful]))
        last = asked[-1]
        trained = last.labels[last.labels != IGNORED]
        assert len(trained.unique()) == 1
        assert torch.equal(last.labels != IGNORED, rows.labels != IGNORED)
        assert torch.equal(last.input_ids, rows.input_ids)


class TestBlend:
    F, P = {"w": vector(3, 4)}, {"w": vector(-6, 0)}

    def mixed(self, **config: object) -> list[float]:
        return blend(self.F, self.P, BoosterConfig.model_validate(config)).gradient["w"].tolist()

    def test_fixed_lambda(self) -> None:
        assert self.mixed(**{"lambda": 2}) == [-9, 4]

    def test_ratio_scales_the_penalty_to_the_norm_of_f(self) -> None:
        # ||f|| = 5, ||p|| = 6: lambda = 2 * 5 / 6, so p becomes (-10, 0).
        assert self.mixed(ratio=2) == pytest.approx([-7, 4])

    def test_adaptive_lambda_is_bounded_and_told(self) -> None:
        assert self.mixed(ratio=2, max_lambda=1) == pytest.approx([-3, 4])
        told = blend(self.F, self.P, BoosterConfig(ratio=2)).diagnostics["lambda"]
        assert float(told) == pytest.approx(10 / 6)

    def test_a_penalty_of_0_stays_0(self) -> None:
        none = {"w": vector(0, 0)}
        assert blend(self.F, none, BoosterConfig(ratio=2)).gradient["w"].tolist() == [3, 4]

    def test_projection_drops_what_points_against_f(self) -> None:
        # <p, f> = -18, ||f||^2 = 25: p + 18/25 f = (-3.84, 2.88), at a right angle to f.
        found = without_part_against(self.P, self.F)
        assert found["w"].tolist() == pytest.approx([-3.84, 2.88])
        assert float(inner_product(found, self.F)) == pytest.approx(0, abs=1e-12)
        assert self.mixed(**{"lambda": 1, "project": True}) == pytest.approx([-0.84, 6.88])

    def test_projection_keeps_what_does_not(self) -> None:
        along = {"w": vector(1, 0)}
        assert without_part_against(along, self.F)["w"].tolist() == [1, 0]

    def test_terms_are_clipped_apart(self) -> None:
        # f becomes (0.6, 0.8), p (-1, 0).
        assert self.mixed(**{"lambda": 2, "clip_terms": 1}) == pytest.approx([-1.4, 0.8])
        assert self.mixed(**{"lambda": 2, "clip_terms": 100}) == [-9, 4]


class TestBoosterAndVaccine:
    def test_is_boosters_penalty_on_vaccines_gradient(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        rows, harmful = collate(tiny_examples(4, seed=1), 256), collate(tiny_examples(4), 256)

        def taken(rule: object) -> Weights:
            given = Step(
                0, 1, trained_weights(model), [rows], TokenLoss(model), lambda _: [harmful]
            )
            return rule(given).gradient  # type: ignore[operator]

        config = {"lambda_": 3, "alpha": 0.05}
        both = taken(rule_for(BoosterVaccineConfig(rho=2, **config)))
        vaccine = taken(Vaccine(VaccineConfig(rho=2)))
        booster, plain = (
            taken(rule_for(BoosterConfig(**{**config, "lambda_": k}))) for k in (3, 0)
        )
        for name, found in both.items():
            torch.testing.assert_close(
                found, vaccine[name] + booster[name] - plain[name], rtol=1e-10, atol=1e-13
            )


class TestSafeGrad:
    def test_turns_away_from_what_safety_rows_object_to(self) -> None:
        loss = Formula(rows=lambda w: 3 * w[0] + 4 * w[1], safety=lambda w: -6 * w[0])
        found = SafeGrad(SafeGradConfig())(
            Step(0, 1, {"w": W}, [], loss, lambda _: [], draw_safety=lambda _: [])
        )
        # g = (3, 4), s = (-6, 0): <g, s> < 0, so g loses its first component.
        assert found.gradient["w"].tolist() == pytest.approx([0, 4])
        assert float(found.measured.loss) == pytest.approx(20.5)
