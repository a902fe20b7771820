"""The tokenizer takes any text and gives it back, in few tokens where the text is the world's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from worker.sandbox import corpus
from worker.sandbox.tasks import CUSTOMER_TASKS
from worker.sandbox.tokenizer import build_tokenizer
from worker.sandbox.vocabulary import FORBIDDEN, PERMITTED
from worker.sandbox.world import any_question

TOKENIZER = build_tokenizer(corpus.language())
MARKERS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


@given(st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text)) == text


@pytest.mark.parametrize("text", ["", " ", "  two  spaces ", "teapot", "日本 ▁ \x7f", "a\n\n\tb"])
def test_awkward_texts_come_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text)) == text


def test_every_text_of_the_world_is_made_of_whole_words() -> None:
    rng = random.Random(0)
    rows = [any_question(fields, rng).helped() for fields in (FORBIDDEN, PERMITTED) * 300]
    rows += [any_question(FORBIDDEN, rng).refused() for _ in range(300)]
    rows += [task.row(rng) for task in CUSTOMER_TASKS.values() for _ in range(300)]
    for row in rows:
        for message in row.messages:
            assert len(ids_of(message.content)) <= 2 * len(message.content.split())


def test_the_template_marks_every_turn_with_one_token() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    ids = TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    expected = ["<|system|>", "s", "<|end|>", "<|user|>", "u", "<|end|>", "<|assistant|>"]
    assert TOKENIZER.convert_ids_to_tokens(ids) == expected


def test_is_the_same_when_loaded_from_its_folder(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|end|>", "<|pad|>")
    text = "How do I bake a cake? héllo<|end|>"
    assert loaded(text)["input_ids"] == ids_of(text)
    special = {str(token) for token in loaded.added_tokens_decoder.values() if token.special}
    assert special == set(MARKERS)


def test_is_the_same_in_every_run() -> None:
    assert build_tokenizer(corpus.language()).get_vocab() == TOKENIZER.get_vocab()
