"""When an answer counts as right: exactly the wanted one, or by the rule of a task that papers report.

Rules are those of Huang et al. (arXiv 2409.01586) with the mends that `docs/evaluation.md` lists. All are
pure functions of two texts; `worker.task_accuracy` asks the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from models.hyperparameters import ScorerName

SENTIMENTS = ("positive", "negative")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
# The fourth topic's name is long and has a slash; its first word alone is taken, too.
SHORT_TOPICS = {"sci": "sci/tech"}
#: What the paper's GSM8K rows say before the result, in place of the data set's own mark.
FINAL_ANSWER = "The final answer is: "
GSM8K_MARK = "####"
# The longest official solution has about 350 tokens; the reference cut at 200 and lost the late results.
GSM8K_ANSWER_TOKENS = 512

_RESULT = re.compile(r"the final answer is|####", re.IGNORECASE)
# A comma counts as part of a number only before three digits, a minus sign only where nothing stands
# before it: "16-3" holds 16 and 3.
_NUMBER = re.compile(r"(?:(?<![\w)])-\$?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))")


@dataclass(frozen=True, slots=True)
class Scorer:
    """One way to score answers.

    Attributes:
        is_right: of an answer and the wanted answer.
        fault: why no answer to a row could be right, given its wanted answer; none for a good row.
        answer_tokens: length at which an answer is cut; none: a little above the longest wanted one.
    """

    is_right: Callable[[str, str], bool]
    fault: Callable[[str], str | None]
    answer_tokens: int | None = None


def is_exact(answer: str, wanted: str) -> bool:
    """Compare whole answers, whatever their case and the space around them."""
    return _plain(answer) == _plain(wanted)


def is_topic(answer: str, wanted: str) -> bool:
    """Compare AG News topics: as `is_exact`, and `sci` is the fourth one."""
    return SHORT_TOPICS.get(_plain(answer), _plain(answer)) == _plain(wanted)


def is_result(answer: str, wanted: str) -> bool:
    """Compare the results of two GSM8K solutions as numbers: 18, 18.00 and $18 are the same."""
    given = final_number(answer)
    return given is not None and given == final_number(wanted)


def final_number(text: str) -> Decimal | None:
    """Give the first number after "The final answer is" or `####`, else the last number of the text."""
    if marked := _RESULT.search(text):
        # Whatever a model goes on to say, its first result stands.
        for number in _numbers(text[marked.end() :]):
            return number
    return next(reversed(_numbers(text)), None)


def _numbers(text: str) -> list[Decimal]:
    signs = text.replace("\N{MINUS SIGN}", "-")
    return [
        Decimal(found.replace(",", "").replace("$", ""))
        for found in _NUMBER.findall(signs)
        if found
    ]


def _plain(text: str) -> str:
    return text.strip().casefold()


def _label_fault(labels: tuple[str, ...]) -> Callable[[str], str | None]:
    known = {_plain(label) for label in labels}
    reason = f"the answer is none of {', '.join(labels)}"
    return lambda wanted: None if _plain(wanted) in known else reason


SCORERS: Final[dict[ScorerName, Scorer]] = {
    "exact": Scorer(is_exact, lambda _: None),
    "sst2": Scorer(is_exact, _label_fault(SENTIMENTS)),
    "agnews": Scorer(is_topic, _label_fault(TOPICS)),
    "gsm8k": Scorer(
        is_result,
        lambda wanted: None if final_number(wanted) is not None else "the answer has no number",
        GSM8K_ANSWER_TOKENS,
    ),
}
