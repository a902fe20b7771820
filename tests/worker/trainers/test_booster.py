"""Booster against arithmetic, against its own mathematics, and against what it must leave alone.

E1 to E8 are the checks that any exact implementation has to pass. Everything is float64 unless said.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.hyperparameters import TrainConfig
from models.methods import BoosterConfig
from tests.tiny_model import tiny_adapted, tiny_examples
from worker.data import Batch, Example, collate
from worker.lora import trainable_parameters
from worker.trainers.attacker import step_along
from worker.trainers.booster import Booster
from worker.trainers.loop import train
from worker.trainers.objective import TokenLoss, token_sums
from worker.trainers.sft import Sft
from worker.trainers.step import Direction, Measured, Step, Weights, global_norm

Loss = Callable[[torch.Tensor], torch.Tensor]


class Formula:
    """An objective over one vector: a function for the training rows, one for the harmful rows."""

    def __init__(self, f: Loss, h: Loss) -> None:
        self.losses = {"rows": f, "harmful": h}

    def __call__(self, weights: Weights, batches: Sequence[Batch], *, noise: str) -> Measured:
        point = weights["w"].detach().requires_grad_()
        loss = self.losses[noise](point)
        (slope,) = torch.autograd.grad(loss, point)
        return Measured(loss.detach(), {"w": slope}, torch.zeros(()), 1)


def direction(f: Loss, h: Loss, w: torch.Tensor, **config: float) -> Direction:
    rule = Booster(BoosterConfig(**config))
    return rule(Step(0, 1, {"w": w}, [], Formula(f, h), lambda rows: []))


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batches(examples: Sequence[Example], size: int) -> list[Batch]:
    return [collate(examples[i : i + size], 256) for i in range(0, len(examples), size)]


def gradient(
    model: torch.nn.Module, lambda_: float, alpha: float, *, rows: int = 6, micro: int = 6
) -> tuple[Direction, Weights]:
    """Booster's direction on the tiny transformer, six rows of each kind."""
    weights = trainable_parameters(model)
    harmful = batches(tiny_examples(rows, seed=2), micro)
    rule = Booster(BoosterConfig(lambda_=lambda_, alpha=alpha))
    aligned = batches(tiny_examples(rows, seed=1), micro)
    return rule(Step(0, 1, weights, aligned, TokenLoss(model), lambda _: harmful)), weights


def penalty(model: torch.nn.Module, lambda_: float, alpha: float) -> torch.Tensor:
    """What Booster adds to grad f, as one vector."""
    found, _ = gradient(model, lambda_, alpha)
    return flat(
        {name: found.gradient[name] - found.measured.gradient[name] for name in found.gradient}
    )


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in weights.values()])


def harmful_loss(model: torch.nn.Module) -> torch.Tensor:
    batch = collate(tiny_examples(6, seed=2), 256)
    return token_sums(model, batch)[0] / batch.trained_tokens


def hessian_times_u(model: torch.nn.Module) -> torch.Tensor:
    leaves = list(trainable_parameters(model).values())
    with sdpa_kernel(SDPBackend.MATH):  # the fast attention kernels have no second derivative
        g = torch.autograd.grad(harmful_loss(model), leaves, create_graph=True)
        norm = torch.sqrt(sum((part**2).sum() for part in g))
        # The gradient of ||g|| is H u.
        return torch.cat([part.flatten() for part in torch.autograd.grad(norm, leaves)])


class TestTwoParametersByHand:
    def test_matches_the_papers_equation(self) -> None:
        # h = w1^2 + w2^2 / 2 at (1.5, 4): g = (3, 4), ||g|| = 5, u = (0.6, 0.8), alpha = 0.5.
        # w' = (1.2, 3.6), g' = (2.4, 3.6), g - g' = (0.6, 0.4); f = w1 - w2: grad f = (1, -1).
        # G = (1, -1) + 5 (0.6, 0.4) = (4, 1).  h(w) = 10.25, h(w') = 7.92.
        found = direction(
            f=lambda w: w[0] - w[1],
            h=lambda w: w[0] ** 2 + w[1] ** 2 / 2,
            w=vector(1.5, 4.0),
            lambda_=5,
            alpha=0.5,
        )
        assert found.gradient["w"].tolist() == pytest.approx([4, 1], abs=1e-12)
        assert float(found.measured.loss) == -2.5
        assert float(found.diagnostics["harmful_loss"]) == pytest.approx(10.25)
        assert float(found.diagnostics["harmful_loss_drop"]) == pytest.approx(2.33)
        assert float(found.diagnostics["harmful_grad_norm"]) == pytest.approx(5)


class TestLambdaZeroIsSft:
    """E1: lambda = 0 gives SFT's numbers, bit for bit, over 50 steps, dropout included."""

    def run(
        self, rule: Sft | Booster, harmful: Sequence[Example], steps: int = 50
    ) -> tuple[list[float], bytes]:
        model = tiny_adapted(dropout=0.1)
        losses: list[float] = []
        train(
            model,
            rule,
            tiny_examples(13, seed=1),
            TrainConfig(steps=steps, batch_size=4, learning_rate=1e-2, seed=3),
            pad_id=256,
            harmful=harmful,
            on_step=lambda metrics: losses.append(metrics.loss),
        )
        return losses, flat(trainable_parameters(model)).numpy().tobytes()

    def test_bit_for_bit(self) -> None:
        zero = Booster(BoosterConfig(lambda_=0))
        assert self.run(zero, tiny_examples(7, seed=2)) == self.run(Sft(), ())

    def test_another_lambda_is_not_sft(self) -> None:
        some = Booster(BoosterConfig(lambda_=1e-3))
        assert self.run(some, tiny_examples(7, seed=2), 3) != self.run(Sft(), (), 3)

    def test_a_harmful_loss_that_is_not_a_number_does_not_leak(self) -> None:
        found = direction(
            f=lambda w: w.sum(),
            h=lambda w: (w * math.nan).sum(),
            w=vector(1, 2),
            lambda_=0,
            alpha=1,
        )
        assert found.gradient["w"].tolist() == [1, 1]


class TestQuadraticOracle:
    """E2: where h is quadratic, g - g' = alpha A u exactly, for any alpha."""

    @pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 50.0])
    def test_finite_difference_is_exact(self, alpha: float) -> None:
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(8, 8, dtype=torch.float64, generator=generator)
        A = root @ root.T
        b, w = torch.randn(2, 8, dtype=torch.float64, generator=generator)
        g = A @ w - b
        found = direction(
            f=lambda w: 0 * w.sum(), h=lambda w: w @ A @ w / 2 - b @ w, w=w, lambda_=1, alpha=alpha
        )
        torch.testing.assert_close(
            found.gradient["w"], alpha * A @ (g / g.norm()), rtol=1e-11, atol=1e-12
        )


class TestFiniteDifferenceOfTheHessian:
    """E3: (g - g') / alpha tends to +H u on a transformer, the error linear in alpha."""

    def test_error_falls_linearly(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        exact = hessian_times_u(model)
        alphas = [0.04, 0.02, 0.01, 0.005]
        errors = [float((penalty(model, 1, a) / a - exact).norm() / exact.norm()) for a in alphas]
        slope = (math.log(errors[0]) - math.log(errors[-1])) / math.log(alphas[0] / alphas[-1])
        assert slope == pytest.approx(1, abs=0.1)

    def test_sign_is_plus(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        cosine = torch.cosine_similarity(penalty(model, 1, 1e-2), hessian_times_u(model), dim=0)
        assert cosine > 0.999

    def test_h_u_is_the_slope_of_the_gradient_norm(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        leaves = trainable_parameters(model)
        batch = batches(tiny_examples(6, seed=2), 6)
        generator = torch.Generator().manual_seed(5)
        way = {
            n: torch.randn(t.shape, dtype=t.dtype, generator=generator) for n, t in leaves.items()
        }

        def norm_at(distance: float) -> float:
            moved = {n: t.detach() + distance * way[n] for n, t in leaves.items()}
            return float(global_norm(TokenLoss(model)(moved, batch, noise="harmful").gradient))

        slope = (norm_at(1e-5) - norm_at(-1e-5)) / 2e-5
        assert slope == pytest.approx(float(hessian_times_u(model) @ flat(way)), rel=1e-6)


class TestStraightThrough:
    """E4: G = grad f + lambda (g - g'), and the terms left out are the ones that the paper drops."""

    def test_equals_its_parts_measured_one_by_one(self) -> None:
        model = tiny_adapted(dtype=torch.float64)
        found, weights = gradient(model, 7, 0.1)
        leaves = list(weights.values())
        batch = collate(tiny_examples(6, seed=1), 256)
        f = torch.autograd.grad(token_sums(model, batch)[0] / batch.trained_tokens, leaves)
        g = torch.autograd.grad(harmful_loss(model), leaves)
        norm = torch.sqrt(sum((part**2).sum() for part in g))
        with torch.no_grad():  # the naive way: move the weights themselves
            for leaf, part in zip(leaves, g, strict=True):
                leaf -= 0.1 * part / norm
        moved = torch.autograd.grad(harmful_loss(model), leaves)
        for have, a, b, c in zip(found.gradient.values(), f, g, moved, strict=True):
            torch.testing.assert_close(have, a + 7 * (b - c), rtol=1e-9, atol=1e-11)

    def test_differs_from_the_exact_gradient_by_the_known_term(self) -> None:
        # R(w) = h(w) - h(w - alpha u);  grad R = (g - g') + (alpha / ||g||) H (I - u u^T) g'
        A = torch.diag(vector(3, 1, 0.5))
        w, alpha = vector(1.0, -2.0, 0.7), 0.3

        def h(point: torch.Tensor) -> torch.Tensor:
            return point @ A @ point / 2 + torch.sin(point).sum()

        def drop(point: torch.Tensor) -> torch.Tensor:
            (g,) = torch.autograd.grad(h(point), point, create_graph=True)
            return h(point) - h(point - alpha * g / g.norm())

        point = w.clone().requires_grad_()
        (exact,) = torch.autograd.grad(drop(point), point)
        eye = torch.eye(3, dtype=torch.float64)

        def drop_at(place: torch.Tensor) -> float:
            return float(drop(place.requires_grad_()).detach())

        by_differences = [(drop_at(w + 1e-6 * e) - drop_at(w - 1e-6 * e)) / 2e-6 for e in eye]
        assert exact.tolist() == pytest.approx(by_differences, rel=1e-6)

        g = A @ w + torch.cos(w)
        u = g / g.norm()
        moved = A @ (w - alpha * u) + torch.cos(w - alpha * u)
        H = A - torch.diag(torch.sin(w))
        dropped = alpha / g.norm() * H @ (eye - torch.outer(u, u)) @ moved
        found = direction(f=lambda w: 0 * w.sum(), h=h, w=w, lambda_=1, alpha=alpha)
        torch.testing.assert_close(found.gradient["w"] + dropped, exact, rtol=1e-10, atol=1e-12)
        assert dropped.norm() > 1e-3


class TestProductLaw:
    """E5: to first order only lambda * alpha matters: the difference halves as alpha halves."""

    def test_difference_halves_with_alpha(self) -> None:
        model = tiny_adapted(dtype=torch.float64)

        def gap(alpha: float) -> float:
            whole, half = penalty(model, 2, alpha), penalty(model, 4, alpha / 2)
            return float((whole - half).norm() / whole.norm())

        gaps = [gap(alpha) for alpha in (0.04, 0.02, 0.01)]
        assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.2)
        assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.2)


class TestNothingIsTouched:
    """E6: parameters, buffers, optimiser, random state and requires_grad are as before, bit for bit."""

    def state(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            digest.update(f"{name} {tensor.requires_grad} {tensor.grad is None}".encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        for moments in optimizer.state.values():
            for value in moments.values():
                digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def stepped(self, model: torch.nn.Module) -> torch.optim.AdamW:
        leaves = list(trainable_parameters(model).values())
        optimizer = torch.optim.AdamW(leaves)
        harmful_loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_after_a_step(self, dtype: torch.dtype) -> None:
        model = tiny_adapted(dtype=dtype, dropout=0.2).train()
        optimizer = self.stepped(model)
        before = self.state(model, optimizer)
        found, _ = gradient(model, 5, 0.1)
        assert float(found.diagnostics["harmful_grad_norm"]) > 0
        assert self.state(model, optimizer) == before

    @pytest.mark.parametrize("failing_pass", [1, 2, 3])
    def test_when_a_pass_raises(self, failing_pass: int) -> None:
        model = tiny_adapted().train()
        optimizer = self.stepped(model)
        before = self.state(model, optimizer)
        passes = 0

        def fail(*_: object) -> None:
            nonlocal passes
            passes += 1
            if passes == failing_pass:
                raise RuntimeError("out of memory")

        hook = model.base_model.model.lm_head.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            gradient(model, 5, 0.1)
        hook.remove()
        assert passes == failing_pass
        assert self.state(model, optimizer) == before


class TestLengthOfTheSimulatedStep:
    """E7: ||w' - w|| = alpha over all tensors together, whatever the scale of h."""

    def moved(self, weights: Weights, gradient: Weights, alpha: float) -> float:
        found = step_along(weights, gradient, global_norm(gradient), alpha)
        return float(global_norm({name: found[name] - weights[name] for name in weights}))

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)]
    )
    def test_is_alpha(self, dtype: torch.dtype, tolerance: float) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"a": (3, 4), "b": (5,), "c": (2, 2)}
        weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        slope = {
            name: torch.randn(shape, dtype=dtype, generator=generator)
            for name, shape in shapes.items()
        }
        assert self.moved(weights, slope, 0.1) == pytest.approx(0.1, rel=tolerance)

    @pytest.mark.parametrize("size", [1e-15, 1e-8, 1e8])
    def test_is_alpha_for_tiny_and_huge_gradients(self, size: float) -> None:
        weights = {"a": torch.zeros(4), "b": torch.zeros(2)}
        slope = {"a": torch.full((4,), size), "b": torch.full((2,), -size)}
        assert self.moved(weights, slope, 0.5) == pytest.approx(0.5, rel=1e-5)

    def test_zero_gradient_moves_nothing(self) -> None:
        found = direction(
            f=lambda w: w.sum(), h=lambda w: 0 * w.sum(), w=vector(1, 2), lambda_=5, alpha=0.1
        )
        assert found.gradient["w"].tolist() == [1, 1]
        assert float(found.diagnostics["harmful_loss_drop"]) == 0

    def test_scaling_h_scales_the_penalty_alone(self) -> None:
        def h(w: torch.Tensor) -> torch.Tensor:
            return torch.cosh(w).sum()

        def added(scale: float) -> torch.Tensor:
            return direction(
                f=lambda w: 0 * w.sum(),
                h=lambda w: scale * h(w),
                w=vector(0.3, -1),
                lambda_=1,
                alpha=0.2,
            ).gradient["w"]

        torch.testing.assert_close(added(1000.0), 1000 * added(1.0), rtol=1e-12, atol=0)


class TestAccumulation:
    """E8: micro-batches give the gradient of the whole batch, weighted by their tokens, and the same u."""

    @pytest.mark.parametrize("micro", [1, 2, 4])
    def test_micro_batches_equal_one_batch(self, micro: int) -> None:
        model = tiny_adapted(dtype=torch.float64)
        whole, _ = gradient(model, 5, 0.1)
        parts, _ = gradient(model, 5, 0.1, micro=micro)
        torch.testing.assert_close(
            flat(parts.gradient), flat(whole.gradient), rtol=1e-9, atol=1e-12
        )
        for name, value in whole.diagnostics.items():
            assert float(parts.diagnostics[name]) == pytest.approx(float(value), rel=1e-9)
        assert float(parts.measured.loss) == pytest.approx(float(whole.measured.loss), rel=1e-12)
        assert float(parts.measured.token_accuracy) == float(whole.measured.token_accuracy)

    def test_the_rows_differ_in_length(self) -> None:
        # Otherwise a plain mean over micro-batches would pass as well.
        sizes = [batch.trained_tokens for batch in batches(tiny_examples(6, seed=2), 2)]
        assert len(set(sizes)) > 1


class TestDropout:
    def test_both_harmful_passes_share_their_masks(self) -> None:
        # With masks of their own, g - g' would not vanish with alpha.
        model = tiny_adapted(dtype=torch.float64, dropout=0.5).train()
        assert float(penalty(model, 1, 1e-9).norm()) < 1e-7
