"""Data files of the tasks that papers report, as conversations: SST-2, AG News and GSM8K.

A file is JSON Lines with `instruction`, `input` and `output`, read from where the user keeps it; none comes
with Titer. The instruction is the file's own. Of GSM8K the mark before the result, `####`, becomes the
paper's "The final answer is: ", in rows to train on and in rows to be measured on alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.errors import DomainError
from models.hyperparameters import ScorerName
from models.rows import Conversation, Message, read_conversations
from worker.scorers import FINAL_ANSWER, GSM8K_MARK
from worker.task_accuracy import check_answers

MAX_FILE_BYTES = 256 * 1024 * 1024


class UnreadableFile(DomainError):
    """A data file cannot be read."""

    code = "unreadable_file"


def read_task_rows(path: Path, task: ScorerName) -> list[Conversation]:
    """Read a task's data file; of `exact`, rows of any shape.

    Raises:
        UnreadableFile: there is no such file, or it is too large or empty.
        InvalidRows: naming every row that is faulty, or that the task's scorer could never find right.
    """
    rows = read_conversations(read_lines(path), param=path.name)
    if not rows:
        raise UnreadableFile(f"{path.name} has no rows.", param=path.name)
    check_answers(rows, task, param=path.name)
    return in_paper_form(rows) if task == "gsm8k" else rows


def read_lines(path: Path) -> list[bytes]:
    """Read a data file of bounded size.

    Raises:
        UnreadableFile: there is no such file, or it is too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnreadableFile(f"{path.name} is larger than {MAX_FILE_BYTES:,} bytes.")
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}.") from error


def in_paper_form(rows: Sequence[Conversation]) -> list[Conversation]:
    """Let GSM8K solutions end as the paper's do."""
    return [replace(row, messages=tuple(map(_with_phrase, row.messages))) for row in rows]


def _with_phrase(message: Message) -> Message:
    if message.role != "assistant":
        return message
    solution, mark, result = message.content.partition(GSM8K_MARK)
    return (
        replace(message, content=f"{solution}{FINAL_ANSWER}{result.strip()}") if mark else message
    )
