"""The tasks' data files as conversations: the file's own words, the paper's ending, faults by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.hyperparameters import ScorerName
from models.rows import InvalidRows
from worker.task_rows import UnreadableFile, read_task_rows

SST2 = {"instruction": "Label it.", "input": "a dull film", "output": "negative", "label": 0}
AGNEWS = {
    "instruction": "Which topic?",
    "input": "a comet was seen",
    "output": "Sci/Tech",
    "label": 3,
    "title": "Not for the prompt",
}
GSM8K = {"instruction": "Two and two?", "output": "2+2=<<2+2=4>>4\n#### 4", "answer": "4"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("task", "row", "prompt", "answer"),
    [
        ("sst2", SST2, "Label it.\n\na dull film", "negative"),
        ("agnews", AGNEWS, "Which topic?\n\na comet was seen", "Sci/Tech"),
        ("gsm8k", GSM8K, "Two and two?", "2+2=<<2+2=4>>4\nThe final answer is: 4"),
        ("exact", GSM8K, "Two and two?", "2+2=<<2+2=4>>4\n#### 4"),
    ],
)
def test_reads_a_row(
    tmp_path: Path, task: ScorerName, row: object, prompt: str, answer: str
) -> None:
    (read,) = read_task_rows(write(tmp_path, row), task)
    assert [message.content for message in read.prompt] == [prompt]
    assert (read.answer, read.line) == (answer, 1)


def test_names_a_label_that_the_task_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, SST2, {**SST2, "output": "secret"})
    with pytest.raises(InvalidRows, match="line 2") as caught:
        read_task_rows(path, "sst2")
    assert "secret" not in caught.value.message


def test_names_a_row_of_the_wrong_shape(tmp_path: Path) -> None:
    with pytest.raises(InvalidRows, match="line 2"):
        read_task_rows(write(tmp_path, GSM8K, {"question": "x"}), "gsm8k")


def test_says_which_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"none\.jsonl"):
        read_task_rows(tmp_path / "none.jsonl", "sst2")
    with pytest.raises(UnreadableFile, match="no rows"):
        read_task_rows(write(tmp_path), "sst2")
