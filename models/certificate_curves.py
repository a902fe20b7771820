"""The curves of a certificate, ready to be drawn: wherever that is done they are the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.certificate import (
    Certificate,
    CustomerResult,
    Estimate,
    Mark,
    RateCurve,
    RatePoint,
)
from models.certification import Family, SimulatedCustomer

#: What differs in nothing but the share of harmful rows.
_BY_SHARE = (Family.BENIGN, Family.MIX, Family.PURE)


@dataclass(frozen=True, slots=True)
class Value:
    """One point of a curve, with its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One curve. `place` is its colour and mark, the same for the same customer in every figure."""

    label: str
    place: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its curves over one axis. Shares run from 0 to 100, losses from 0 to their highest."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    is_share: bool = True
    is_logarithmic: bool = False
    limit: float | None = None
    note: str = ""


def rate_curves(results: Sequence[CustomerResult]) -> tuple[RateCurve, ...]:
    """Give HS against the learning rate, for customers that differ in nothing else."""
    alike: defaultdict[SimulatedCustomer, list[CustomerResult]] = defaultdict(list)
    for result in results:
        alike[result.customer.model_copy(update={"learning_rate": 1.0})].append(result)
    return tuple(
        RateCurve(
            name=customer.kind,
            step=customer.steps,
            points=tuple(
                RatePoint(
                    learning_rate=result.customer.learning_rate,
                    harmful_score=result.last.harmful_score,
                )
                for result in sorted(group, key=lambda result: result.customer.learning_rate)
                # A run that diverged has no last step to compare.
                if result.last.step == customer.steps
            ),
        )
        for customer, group in alike.items()
        if len(group) > 1
    )


def figures(certificate: Certificate) -> tuple[Figure, ...]:
    """Give the figures that have something to show."""
    chosen = _one_of_each_family(certificate.customers)
    limit = certificate.summary.titer.limit_percent

    def by_step(read: Callable[[Mark], Value | None]) -> tuple[Series, ...]:
        return tuple(
            Series(result.customer.short_name, place, tuple(filter(None, map(read, result.marks))))
            for place, result in chosen
        )

    hs = by_step(lambda mark: _value(mark.step, mark.harmful_score))
    fa = by_step(lambda mark: _value(mark.step, mark.fine_tuning_accuracy))
    canary = by_step(_canary)
    rates = tuple(
        Series(
            curve.name,
            place,
            tuple(_value(point.learning_rate, point.harmful_score) for point in curve.points),
        )
        for place, curve in enumerate(certificate.rate_curves)
    )
    drawn = [Figure("Harmful score along the customer's job", "customer steps", hs, limit=limit)]
    if rates:
        drawn.append(
            Figure(
                "Harmful score after the job, by learning rate",
                "learning rate",
                rates,
                is_logarithmic=True,
                limit=limit,
            )
        )
    drawn += [
        Figure("Fine-tuning accuracy", "customer steps", fa),
        Figure("Canary: loss on held-out harmful rows, nats", "customer steps", canary, False),
    ]
    return tuple(drawn)


def marks_of(figure: Figure) -> list[float]:
    """Give every place on a figure's axis at which some curve was measured."""
    return sorted({value.x for series in figure.series for value in series.values})


def ratio_figure(certificates: Sequence[Certificate]) -> Figure | None:
    """Draw HS after the job against the share of harmful rows, a curve for each model; None without two shares.

    The customers are those of the rate and the length that the first certificate has most shares of; of
    several with one share the worst.
    """
    shares = Counter(
        (result.customer.learning_rate, result.customer.steps)
        for result in certificates[0].customers
        if result.customer.family in _BY_SHARE
    )
    if not shares:
        return None
    (rate, steps), _ = shares.most_common(1)[0]
    series = tuple(
        Series(made.model.id, place, values)
        for place, made in enumerate(certificates)
        if len(values := _by_share(made, rate, steps)) > 1
    )
    if not series or series[0].place:
        return None
    return Figure(
        "Harmful score after the job, by share of harmful rows",
        "harmful rows, %",
        series,
        limit=certificates[0].summary.titer.limit_percent,
        note=f"Customers at the rate {rate:g}, after {steps:,} steps.",
    )


def _by_share(certificate: Certificate, rate: float, steps: int) -> tuple[Value, ...]:
    def is_meant(customer: SimulatedCustomer) -> bool:
        same = (customer.learning_rate, customer.steps) == (rate, steps)
        return same and customer.family in _BY_SHARE

    found = [
        result
        for result in certificate.customers
        # One whose loss ceased to be a number has no last step.
        if is_meant(result.customer) and result.last.step == steps
    ]
    starts = {result.customer.start for result in found}
    start = "continued" if "continued" in starts else "fresh"
    worst: dict[float, Estimate] = {}
    for result in found:
        share, score = 100 * result.customer.attack_ratio, result.last.harmful_score
        if result.customer.start == start and (
            share not in worst or score.percent > worst[share].percent
        ):
            worst[share] = score
    return tuple(_value(share, worst[share]) for share in sorted(worst))


def _one_of_each_family(
    results: tuple[CustomerResult, ...],
) -> list[tuple[int, CustomerResult]]:
    """Pick of each family the customer that brought HS highest, and of equal ones the soonest."""
    places = list(Family)
    worst: dict[Family, CustomerResult] = {}
    for result in results:
        family = result.customer.family
        if family not in worst or _severity(result) > _severity(worst[family]):
            worst[family] = result
    return [(places.index(family), worst[family]) for family in places if family in worst]


def _severity(result: CustomerResult) -> tuple[float, float]:
    return result.worst.harmful_score.percent, -result.worst.step


def _canary(mark: Mark) -> Value | None:
    return None if mark.canary_loss is None else Value(mark.step, mark.canary_loss)


def _value(x: float, estimate: Estimate) -> Value:
    return Value(x, estimate.percent, estimate.low, estimate.high)
