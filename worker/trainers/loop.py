"""The optimiser loop, the only one: AdamW over whatever tensors are trained, by any gradient rule.

    for each step:
        rows      = this step's rows, cut into micro-batches
        direction = rule(step)                   the method: sft.py, booster.py ...
        clip the combined gradient to one norm; AdamW with this step's learning rate

The loop owns weights, optimiser, schedule and checkpoints and reports by callbacks. It knows no method,
and nothing of jobs, databases or tokenizers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.nn.utils import clip_grads_with_norm_

from models.errors import DomainError
from models.hyperparameters import TrainConfig
from worker.data import Example
from worker.trainers import ranks
from worker.trainers.checkpoint import Progress, Shelf
from worker.trainers.draw import RowSource
from worker.trainers.objective import TokenLoss, mean_token_loss
from worker.trainers.step import (
    BatchPair,
    Direction,
    Draw,
    Rule,
    Step,
    Weights,
    global_norm,
    no_pairs,
)

# The name of the adapter that a simulated attacker moves, as PEFT writes it into its tensors' names.
ATTACKER = "attacker"


class TrainingDiverged(DomainError):
    """The loss is no longer a number."""

    code = "training_diverged"


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimiser step saw, before its update (the canary: after it).

    Attributes:
        step: counted from 1.
        total_steps: how many the run has.
        loss: f alone, mean cross-entropy over the step's trained tokens; of pairs, as the method defines it.
        token_accuracy: share of the trained tokens that the model puts first, 0 to 1; of pairs, share of those
            whose preferred answer has gained on the other.
        learning_rate: of this step.
        grad_norm: of the combined gradient, before clipping.
        tokens: trained tokens so far, this step's included.
        diagnostics: what the method saw, by name (Booster: harmful_loss, ...).
        canary_loss: mean cross-entropy on held-out harmful rows, where it was measured.
        validation: what `validate` measured after the update, by name; empty where it measured nothing.
    """

    step: int
    total_steps: int
    loss: float
    token_accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    canary_loss: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended. One that was `stopped`, or whose `canary_fell`, did fewer `steps` than it was given."""

    steps: int
    tokens: int
    stopped: bool
    resumed_from: int
    canary_before: float | None
    canary_after: float | None
    canary_fell: bool = False


def train(
    model: torch.nn.Module,
    rule: Rule,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    pad_id: int,
    harmful: Sequence[Example] = (),
    refusals: Sequence[Example] = (),
    safety: Sequence[Example] = (),
    non_preferred: Sequence[Example] = (),
    canary: Sequence[Example] = (),
    canary_every: int = 10,
    canary_stop: float | None = None,
    canary_before: float | None = None,
    epoch_ends: Collection[int] = (),
    validate: Callable[[int], Mapping[str, float]] = lambda _: {},
    on_step: Callable[[StepMetrics], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: Callable[[Path, int], None] = lambda _path, _step: None,
) -> TrainResult:
    """Train every tensor of `model` that requires a gradient, in place.

    Args:
        model: gives `.logits`; its trainable tensors are what `config` trains.
        rule: the method.
        examples: the rows of f: alignment rows, or a customer's.
        config: optimiser, schedule, batch, seed, steps.
        pad_id: fills the ends of short rows; never read.
        harmful: the rows of h, for rules that simulate an attack.
        refusals: the rows that answer the prompts of `harmful` safely, one for each, for paired rules.
        safety: the provider's own rows, for rules that protect a customer's job.
        non_preferred: the other answers to the prompts of `examples`, one for each, for rules that learn from
            pairs.
        canary: held-out harmful rows, measured after step 1, every `canary_every` steps and at the end.
        canary_every: steps between two measurements.
        canary_stop: the run ends when the canary's loss is below this share of what it was before.
        canary_before: what it was before; none: what it is at the start of the run.
        epoch_ends: steps, counted from 1, after which the canary is measured as well.
        validate: is called after each step's update with its number; gives what it measured, if anything.
        on_step: is told of each step.
        should_stop: is asked before each step; true ends the run.
        checkpoint_folder: where to go on from, if it holds a checkpoint, and to write.
        checkpoint_every: steps between two checkpoints; 0: only when stopped.
        on_checkpoint: is told of each checkpoint's folder, and of its step.

    Raises:
        TrainingDiverged: a loss or gradient is NaN or infinite; the weights are those of the step before.
        CheckpointMismatch: the folder holds another run's checkpoint.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("nothing to train: no tensor requires a gradient")
    if refusals and len(refusals) != len(harmful):
        raise ValueError(f"{len(refusals)} refusals for {len(harmful)} harmful rows")
    if non_preferred and len(non_preferred) != len(examples):
        raise ValueError(f"{len(non_preferred)} answers for {len(examples)} preferred ones")
    device = next(iter(weights.values())).device

    def source(stream: str, rows: Sequence[Example], beside: Sequence[Example] = ()) -> RowSource:
        size = config.micro_batch_size
        return RowSource(stream, rows, config.seed, size, pad_id, device, beside, config.packing)

    given = _Given(
        weights=weights,
        attacker={n: p for n, p in model.named_parameters() if f".{ATTACKER}." in n},
        measure=TokenLoss(model, seed=config.seed),
        training=source("training", examples, non_preferred),
        non_preferred=source("training", non_preferred, examples),
        harmful=source("harmful", harmful, refusals),
        # The harmful rows' own stream, so that each meets the refusal of its prompt.
        refusals=source("harmful", refusals, harmful),
        safety=source("safety", safety),
    )
    optimizer = torch.optim.AdamW(
        weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    shelf = None
    done = Progress()
    if checkpoint_folder is not None:
        shelf = Shelf(checkpoint_folder, _identity(config, rule, given))
        done = shelf.resume(weights, optimizer, rule)
    resumed_from = done.step
    if canary and done.step == 0:
        if canary_before is None:
            canary_before = mean_token_loss(model, canary, pad_id)
        done = replace(done, canary_before=canary_before)
    canary_after = done.canary_before
    stopped = canary_fell = False

    was_training = model.training
    model.train()
    try:
        while done.step < config.steps and not (stopped or canary_fell):
            if should_stop():
                stopped = True
            else:
                direction = rule(given.step(done.step, config))
                norm = global_norm(direction.gradient)
                _check_finite(done.step + 1, config.steps, direction.measured.loss, norm)
                rate = learning_rate(config, done.step)
                _update(optimizer, weights, direction.gradient, norm, rate, config.max_grad_norm)
                done = replace(
                    done, step=done.step + 1, tokens=done.tokens + direction.measured.tokens
                )
                canary_loss = None
                if canary and (
                    done.step in (1, config.steps)
                    or done.step % canary_every == 0
                    or done.step in epoch_ends
                ):
                    canary_loss = canary_after = mean_token_loss(model, canary, pad_id)
                    canary_fell = done.step < config.steps and _has_fallen(
                        canary_loss, done.canary_before, canary_stop
                    )
                measured = _metrics(done, config, direction, norm, rate, canary_loss)
                on_step(replace(measured, validation=validate(done.step)))
            # Where the canary fell there is nothing to go on from: a checkpoint would be trained past it.
            due = checkpoint_every and done.step % checkpoint_every == 0 and not canary_fell
            if (
                shelf is not None
                and ranks.rank() == 0
                and (stopped or (due and done.step < config.steps))
            ):
                on_checkpoint(shelf.save(done, weights, optimizer, rule), done.step)
    finally:
        model.train(was_training)
    return TrainResult(
        done.step,
        done.tokens,
        stopped,
        resumed_from,
        done.canary_before,
        canary_after,
        canary_fell,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Give the rate of a step, counted from 0: up in a line to the peak, then the schedule.

    The first step already moves (peak / warm-up steps) and so does the last; 0 would come one step later.
    """
    warmup = math.ceil(config.warmup_ratio * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "linear":
            return config.learning_rate * (1 - progress)
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class _Given:
    """What a run's steps are made of."""

    weights: Weights
    attacker: Weights
    measure: TokenLoss
    training: RowSource
    non_preferred: RowSource
    harmful: RowSource
    refusals: RowSource
    safety: RowSource

    def step(self, index: int, config: TrainConfig) -> Step:
        def drawn_from(source: RowSource) -> Draw:
            return lambda rows: source.draw(index, rows or config.batch_size)

        rows = self.training.draw(index, config.batch_size)

        def pairs() -> Iterable[BatchPair]:
            return zip(rows, self.non_preferred.draw(index, config.batch_size), strict=True)

        def every_pair() -> Iterable[BatchPair]:
            sources = (self.training, self.non_preferred)
            return zip(*(source.every(config.batch_size) for source in sources), strict=True)

        return Step(
            index=index,
            total=config.steps,
            weights=self.weights,
            rows=rows,
            measure=self.measure.at(index),
            draw_harmful=drawn_from(self.harmful),
            draw_refusals=drawn_from(self.refusals),
            draw_safety=drawn_from(self.safety),
            pairs=pairs if self.non_preferred.examples else no_pairs,
            every_pair=every_pair if self.non_preferred.examples else no_pairs,
            attacker=self.attacker,
            seed=config.seed,
        )


def _has_fallen(loss: float, before: float | None, share: float | None) -> bool:
    return before is not None and share is not None and loss < share * before


def _check_finite(step: int, total: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
    # Before the update, so that the weights are still those of the last good step.
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise TrainingDiverged(
            f"Training diverged at step {step} of {total}: the loss or its gradient is not a finite "
            "number. Try a lower learning rate."
        )


def _metrics(
    done: Progress,
    config: TrainConfig,
    direction: Direction,
    norm: torch.Tensor,
    rate: float,
    canary_loss: float | None,
) -> StepMetrics:
    return StepMetrics(
        step=done.step,
        total_steps=config.steps,
        loss=float(direction.measured.loss),
        token_accuracy=float(direction.measured.token_accuracy),
        learning_rate=rate,
        grad_norm=float(norm),
        tokens=done.tokens,
        diagnostics={name: float(value) for name, value in direction.diagnostics.items()},
        canary_loss=canary_loss,
    )


@torch.no_grad()
def _update(
    optimizer: torch.optim.Optimizer,
    weights: Weights,
    gradient: Weights,
    norm: torch.Tensor,
    rate: float,
    max_norm: float | None,
) -> None:
    for name, tensor in weights.items():
        tensor.grad = gradient[name]
    if max_norm is not None:
        clip_grads_with_norm_(list(weights.values()), max_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _identity(config: TrainConfig, rule: Rule, given: _Given) -> dict[str, object]:
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in given.weights.items()])
    pairs = {"non_preferred_rows": given.non_preferred.digest()}
    return {
        **(pairs if given.non_preferred.examples else {}),
        "config": config.model_dump(mode="json"),
        "rule": repr(rule),
        "training_rows": given.training.digest(),
        "harmful_rows": given.harmful.digest(),
        "refusal_rows": given.refusals.digest(),
        "safety_rows": given.safety.digest(),
        "weights": hashlib.sha256(shapes.encode()).hexdigest(),
    }
