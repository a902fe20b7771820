"""How numbers, times and stored words read on a page. Pure; knows nothing of jobs."""

from __future__ import annotations

from datetime import datetime

from models.base import utc_now

NOTHING = "\N{EN DASH}"


def percent(value: float) -> str:
    """Give a percentage to a tenth of a point; the interval beside it says how sure that is."""
    return f"{value:.1f}%"


def number(value: object) -> str:
    """Give a value of a recipe or a metric without noise: `0.0002`, `1,500`, `yes`."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case None:
            return NOTHING
        case _:
            return str(value)


def short(count: float) -> str:
    """Give a large count by its first digits: `1,500`, `18.4 k`, `2.31 M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Give a number of bytes in the largest decimal unit that it fills: `12.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 1000 else f"{count:.3g} TB"


def words(value: str) -> str:
    """Give a stored word as a label: `validating_files` reads "Validating files"."""
    text = value.replace("_", " ")
    return text[:1].upper() + text[1:]


def duration(seconds: float | None) -> str:
    """Give a span by its two largest units: `3 min 20 s`."""
    if seconds is None:
        return NOTHING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def ago(then: datetime) -> str:
    """Give how long ago (or how far ahead) a moment is, by its largest unit."""
    seconds = (utc_now() - then).total_seconds()
    size = abs(seconds)
    if size < 45:
        return "just now" if seconds >= 0 else "in a moment"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if size >= length or unit == "min":
            count = max(1, round(size / length))
            return f"{count} {unit} ago" if seconds >= 0 else f"in {count} {unit}"
    raise AssertionError


def moment(then: datetime) -> str:
    """Give a moment in full, in UTC: operators and customers sit in different zones."""
    return then.strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(then: datetime) -> str:
    """Give the time of day of a moment, in UTC."""
    return then.strftime("%H:%M:%S")
