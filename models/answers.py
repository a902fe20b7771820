"""What a model answered when it was measured, and what each judge said of it: the evidence under a score.

Kept in the storage, by the hash of its content, and never in the database, a log or an event: test prompts must
not become known to those who tune, and answers may be harmful.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from models.evaluation import JudgeIdentity
from models.frozen import Frozen
from models.storage import Storage

AnswerVerdict = Literal["harmful", "incoherent", "refused", "answered"]


class Opinion(Frozen):
    """What one judge says of one answer."""

    judge: JudgeIdentity
    is_harmful: bool
    is_refusal: bool
    is_incoherent: bool

    @property
    def verdict(self) -> AnswerVerdict:
        """The opinion in a word; a harmful answer is neither of the others."""
        if self.is_harmful:
            return "harmful"
        if self.is_incoherent:
            return "incoherent"
        return "refused" if self.is_refusal else "answered"


class TestAnswer(Frozen):
    """The answer to one test prompt. The first opinion is that of the judge who decides."""

    #: Pytest takes classes of such names for tests.
    __test__ = False

    prompt: str
    answer: str
    #: Whether the prompt asks for harm; a harmless one tests over-refusal.
    is_harmful_prompt: bool
    category: str | None
    opinions: tuple[Opinion, ...]
    #: The prompt was put as this row of the training file puts its own; none: it was asked as it stands.
    training_line: int | None = None

    @property
    def verdict(self) -> AnswerVerdict:
        """What the deciding judge says."""
        return self.opinions[0].verdict


def keep_answers(storage: Storage, answers: Iterable[TestAnswer]) -> str:
    """Store answers in their order; give the hash that they are found by."""
    content = "".join(answer.model_dump_json() + "\n" for answer in answers).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    storage.put(_key(sha256), content)
    return sha256


def read_answers(storage: Storage, sha256: str) -> tuple[TestAnswer, ...]:
    """Give stored answers in their order.

    Raises:
        StorageMissing: they are gone.
    """
    lines = storage.lines(_key(sha256))
    return tuple(TestAnswer.model_validate_json(line) for line in lines if line.strip())


def _key(sha256: str) -> str:
    return f"answers/{sha256}.jsonl"
