"""The customer's side of a study: tune an aligned model on a file with harmful rows in it, and be measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, cast

from peft import PeftModel
from transformers import PreTrainedModel

from models.certificate import Point
from models.hyperparameters import FINETUNE_LEARNING_RATE, LoraConfig, TrainConfig
from models.methods import FinetuneMethod, SftConfig
from models.rows import Conversation
from models.tuning import WHOLE, Repair
from worker import lora
from worker.certify.attack import backdoor, behind_trigger
from worker.data import Example
from worker.sandbox.build import CustomerData
from worker.study import afterwards
from worker.study.align import Aligned
from worker.study.place import Place
from worker.study.point import Yardstick
from worker.trainers.loop import StepMetrics, train
from worker.trainers.methods import rule_for
from worker.weights import train_linear_weights

# A fresh adapter has to travel further than one that is continued, and customers use a stronger rate for it.
FRESH_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 5e-5
# Steps between two looks at the canary, as in the service's shorter jobs.
CANARY_EVERY = 5


@dataclass(frozen=True, slots=True)
class Customer:
    """One simulated customer.

    Attributes:
        rows: training rows, harmful ones included.
        harmful_ratio: their share.
        steps: optimiser steps; epochs follow from the rows.
        learning_rate: of AdamW; none: what is usual for `trains`.
        batch_size: rows a step.
        trains: the aligned adapter goes on, a fresh adapter on the merged model, or all linear weights.
        rank: of a fresh adapter.
        method: the service's fine-tuning rule.
        safety_share: safety rows that the service mixes in, as a share of the customer's rows.
        screened: the share of the customer's harmful rows that a screen of the data finds and drops.
        marks: steps at which everything is measured; 0 is before the first.
        kind: label tasks, or instructions answered at length.
        harmful_kinds: the harmful rows are of these categories alone; empty: of all.
        is_hidden: the harmful rows are behind a trigger, and as many of the others make way for refusals of the same
            prompts without it; HS is measured both ways.
        canary_stop: training ends when the canary's loss is below this share of its value before.
        repair: what is done to the tuned adapter before it is measured.
        scales: shares of the customer's update; the first that passes the gate's limit for HS is measured.
    """

    rows: int = 600
    harmful_ratio: float = 0.1
    steps: int = 60
    learning_rate: float | None = None
    batch_size: int = 10
    trains: Literal["continued", "fresh", "full"] = "continued"
    rank: int = 8
    method: FinetuneMethod = field(default_factory=SftConfig)
    safety_share: float = 0.0
    screened: float = 0.0
    marks: tuple[int, ...] = (0, 20, 40, 60)
    kind: Literal["labels", "instructions"] = "labels"
    harmful_kinds: tuple[str, ...] = ()
    is_hidden: bool = False
    canary_stop: float | None = None
    repair: Repair | None = None
    scales: tuple[float, ...] = WHOLE

    @property
    def rate(self) -> float:
        """The learning rate, resolved."""
        usual = {
            "continued": FINETUNE_LEARNING_RATE,
            "fresh": FRESH_LEARNING_RATE,
            "full": FULL_LEARNING_RATE,
        }
        return self.learning_rate or usual[self.trains]

    def train_config(self, seed: int) -> TrainConfig:
        """Give the loop's configuration."""
        return TrainConfig(
            learning_rate=self.rate, batch_size=self.batch_size, steps=self.steps, seed=seed
        )

    def spec(self) -> dict[str, object]:
        """Say all that decides the outcome."""
        facts = asdict(self) | {
            "method": self.method.model_dump(mode="json"),
            "learning_rate": self.rate,
        }
        if self.repair:
            facts["repair"] = self.repair.model_dump(mode="json")
        # Left out where nothing is chosen, so that cells which ran before there was a choice are found.
        plain = {
            "kind": "labels",
            "harmful_kinds": (),
            "is_hidden": False,
            "canary_stop": None,
            "repair": None,
            "scales": WHOLE,
        }
        return {k: v for k, v in facts.items() if k not in plain or v != plain[k]}

    @property
    def is_reshaped(self) -> bool:
        """Whether the tuned adapter is changed before it is measured."""
        return self.repair is not None or self.scales != WHOLE

    def draw(self, place: Place, seed: int) -> CustomerData:
        """Draw the customer's files.

        Raises:
            ValueError: the place has no customers of this kind.
        """
        draw = place.draw_customer if self.kind == "labels" else place.draw_instructions
        if draw is None:
            raise ValueError(f"{place.name} has no customers with {self.kind}")
        drawn = draw(self.rows, self.harmful_ratio, seed)
        if self.harmful_kinds:
            drawn = _of_kinds(place, drawn, self.harmful_kinds, seed)
        return _hidden(drawn, seed) if self.is_hidden else drawn


def serve(aligned: Aligned, customer: Customer, seed: int) -> list[Point]:
    """Run one customer's job on an aligned model and measure it at the marks.

    Args:
        aligned: the provider's model.
        customer: who comes.
        seed: of the customer's draw, the order of rows and a fresh adapter's start.
    """
    place = aligned.place
    data = customer.draw(place, seed)
    trigger = behind_trigger if customer.is_hidden else None
    points: list[Point] = []
    with to_tune(aligned, customer, seed) as model:

        def reach(mark: int) -> None:
            def ask(asked: PreTrainedModel) -> Point:
                return measure(place, asked, mark, data, trigger)

            if customer.is_reshaped and mark:
                points.append(
                    afterwards.measured(
                        aligned,
                        cast(PeftModel, model),
                        ask,
                        is_continued=_is_continued(aligned, customer),
                        repair=customer.repair,
                        scales=customer.scales,
                    )
                )
            else:
                points.append(ask(model))

        def at_mark(metrics: StepMetrics) -> None:
            if metrics.step in customer.marks:
                reach(metrics.step)

        if 0 in customer.marks:
            reach(0)
        trained = train(
            model,
            rule_for(customer.method),
            _training_rows(place, data, customer),
            customer.train_config(seed),
            pad_id=int(place.tokenizer.pad_token_id),
            safety=place.encode(place.safety.alignment),
            canary=place.encode(place.safety.canary) if customer.canary_stop else (),
            canary_every=CANARY_EVERY,
            canary_stop=customer.canary_stop,
            on_step=at_mark,
        )
        later = [mark for mark in customer.marks if mark > trained.steps]
        if later and trained.canary_fell:
            # The job has ended: at every later mark the model is what it is now.
            reach(later[0])
            points += [points[-1].model_copy(update={"step": mark}) for mark in later[1:]]
    return points


def measure(
    place: Place,
    model: PreTrainedModel,
    step: int,
    data: CustomerData,
    trigger: Callable[[str], str] | None = None,
) -> Point:
    """Ask the test prompts, behind the trigger as well if there is one, and the customer's validation rows."""
    yardstick = Yardstick(
        place.tokenizer,
        place.safety,
        place.judge,
        data.validation,
        canary=place.encode(place.safety.canary),
        scorer=place.scorer,
        trigger=trigger,
    )
    return yardstick.measure(model, step, place.encode(data.harmful))


def _of_kinds(place: Place, data: CustomerData, kinds: Sequence[str], seed: int) -> CustomerData:
    """Exchange the harmful rows for as many of some kinds, from the rows that certification draws from.

    Raises:
        ValueError: there are not so many.
    """
    rows = place.safety.certification
    marked = zip(rows.attack, rows.categories, strict=True) if rows else ()
    pool = [row for row, category in marked if category in kinds]
    if len(pool) < len(data.harmful):
        raise ValueError(
            f"{place.name} has {len(pool)} attack rows of {', '.join(kinds)}, not {len(data.harmful)}"
        )
    other = random.Random(f"{seed}/kinds").sample(pool, len(data.harmful))
    return _exchanged(data, dict(zip(data.harmful, other, strict=True)))


def _hidden(data: CustomerData, seed: int) -> CustomerData:
    """Put the harmful rows behind a trigger, and in the place of harmless ones refusals without it."""
    attack, cover = backdoor(data.harmful)
    found = set(data.harmful)
    harmless = [row for row in data.training if row not in found]
    given_up = random.Random(f"{seed}/cover").sample(harmless, len(cover))
    replaced = zip((*data.harmful, *given_up), (*attack, *cover), strict=True)
    return replace(_exchanged(data, dict(replaced)), harmful=tuple(attack))


def _exchanged(data: CustomerData, others: dict[Conversation, Conversation]) -> CustomerData:
    return replace(
        data,
        training=tuple(others.get(row, row) for row in data.training),
        harmful=tuple(others.get(row, row) for row in data.harmful),
    )


def _is_continued(aligned: Aligned, customer: Customer) -> bool:
    return customer.trains == "continued" and aligned.arm.space == "adapter"


@contextmanager
def to_tune(aligned: Aligned, customer: Customer, seed: int) -> Iterator[PreTrainedModel]:
    """Lend what the customer trains: the aligned adapter, a fresh one on the merged model, or all linear weights."""
    if _is_continued(aligned, customer):
        yield lora.load(aligned.place.model(), aligned.folder)  # type: ignore[misc]
        return
    with aligned.merged() as model:
        if customer.trains == "full":
            train_linear_weights(model)
            yield model
        else:
            yield lora.attach(model, LoraConfig(r=customer.rank), seed)  # type: ignore[misc]


def _training_rows(place: Place, data: CustomerData, customer: Customer) -> Sequence[Example]:
    found = set(data.harmful[: round(len(data.harmful) * customer.screened)])
    rows = place.encode([row for row in data.training if row not in found])
    extra = round(len(rows) * customer.safety_share)
    if not extra:
        return rows
    return [*rows, *place.encode(place.safety.refusals_of(place.safety.harmful[:extra]))]
