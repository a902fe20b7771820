"""One simulated customer's job on a model that is lent for it: train, and measure at the marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from transformers import PreTrainedModel

from models.certificate import CertificationRun, Point
from models.certification import SimulatedCustomer
from models.hyperparameters import TrainConfig
from models.methods import SftConfig
from models.rows import Conversation
from models.safety_set import CertificationRows, SafetySet
from worker.certify.attack import training_rows
from worker.data import Example, encode_rows
from worker.study.point import Yardstick
from worker.trainers.loop import StepMetrics, TrainingDiverged, train
from worker.trainers.methods import rule_for

Ask = Callable[[Callable[[], Point]], Point]


def simulate(
    model: PreTrainedModel,
    customer: SimulatedCustomer,
    seed: int,
    *,
    rows: CertificationRows,
    asked: SafetySet,
    yardstick: Yardstick,
    max_length: int,
    ask: Ask = lambda measure: measure(),
    should_stop: Callable[[], bool] = lambda: False,
) -> CertificationRun | None:
    """Let one customer tune a model, in place, by the rule and the optimiser that the service gives customers.

    Args:
        model: the certified model, with the adapter that the customer trains.
        customer: who comes.
        seed: of its draw and of the order of its rows.
        rows: what customers draw from.
        asked: the test prompts, which decide what a shifted attack leaves out.
        yardstick: what is measured at each mark.
        max_length: tokens of a row that are kept.
        ask: makes a measurement, again if the judge fails.
        should_stop: is asked before each step.

    Returns:
        The run; none if it was stopped. A run whose loss ceases to be a number ends there, with what was measured.

    Raises:
        InvalidRows: this base cannot be trained on a row.
        JudgeError: the judge failed.
    """
    started = perf_counter()
    brought = training_rows(customer, rows, asked, seed)

    def encode(drawn: Sequence[Conversation]) -> list[Example]:
        return encode_rows(drawn, yardstick.tokenizer, max_length, param="safety_set")

    attack = encode(brought.attack)
    points: list[Point] = []
    last: list[StepMetrics] = []

    def at_step(metrics: StepMetrics) -> None:
        last[:] = [metrics]
        if metrics.step in customer.marks:
            points.append(ask(lambda: yardstick.measure(model, metrics.step, attack)))

    config = TrainConfig(
        learning_rate=customer.learning_rate,
        batch_size=customer.batch_size,
        steps=customer.steps,
        seed=seed,
        max_length=max_length,
    )
    try:
        result = train(
            model,
            rule_for(SftConfig()),
            encode(brought.rows),
            config,
            pad_id=int(yardstick.tokenizer.pad_token_id),
            on_step=at_step,
            should_stop=should_stop,
        )
    except TrainingDiverged:
        is_diverged = True
    else:
        is_diverged = False
        if result.stopped:
            return None
    return CertificationRun(
        customer=customer,
        seed=seed,
        points=tuple(points),
        steps=last[0].step if last else 0,
        trained_tokens=last[0].tokens if last else 0,
        is_diverged=is_diverged,
        seconds=round(perf_counter() - started, 3),
    )
