"""Which tokens of a conversation are read, and which are trained."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.rows import Conversation, InvalidRows, Message, Pair, Row, RowFault, parse_line
from tests.tiny_model import tiny_tokenizer
from worker.data import (
    IGNORED,
    Example,
    collate,
    encode,
    encode_data_set,
    encode_pairs,
    encode_rows,
    pack,
)

# No special tokens at all, and a prompt that ends in a letter: an answer can merge with it.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: a{% endif %}"
)
# The finished turn has no thinking mark; the opened one has.
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>think\n{% endif %}"
)
TRIMMING = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] | trim }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TRIMMING
)


def trained(example: Example | RowFault, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The runs of trained tokens, as text."""
    assert isinstance(example, Example), str(example)
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def prompt_ids(example: Example) -> list[int]:
    first = next(i for i, label in enumerate(example.labels) if label != IGNORED)
    return list(example.input_ids[:first])


def served(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt as serving feeds it."""
    messages = [{"role": m.role, "content": m.content} for m in conversation.prompt]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(found)


TALK = Conversation(
    (
        Message("system", "be brief"),
        Message("user", "2+2?"),
        Message("assistant", "four", is_trained=True),
        Message("user", "3+3?"),
        Message("assistant", "not this"),
        Message("user", "4+4?"),
        Message("assistant", "eight", is_trained=True),
    )
)


class TestTrainedTokens:
    def test_are_the_answer_and_the_end_of_its_turn(self) -> None:
        tokenizer = tiny_tokenizer()
        row = Conversation.single("2+2?", "four")
        example = encode(row, tokenizer, 100)
        assert trained(example, tokenizer) == ["four<end>"]
        assert isinstance(example, Example)
        assert tokenizer.decode(example.input_ids) == "<user>2+2?<end><assistant>four<end>"

    def test_are_those_of_every_trained_turn_and_no_other(self) -> None:
        tokenizer = tiny_tokenizer()
        assert trained(encode(TALK, tokenizer, 200), tokenizer) == ["four<end>", "eight<end>"]

    def test_nothing_after_the_last_trained_turn_is_kept(self) -> None:
        tokenizer = tiny_tokenizer()
        row = Conversation((*TALK.messages[:5],))
        example = encode(row, tokenizer, 200)
        assert trained(example, tokenizer) == ["four<end>"]
        assert isinstance(example, Example)
        assert "not this" not in tokenizer.decode(example.input_ids)

    def test_an_answer_that_the_prompt_contains_too_is_found_in_its_own_place(self) -> None:
        tokenizer = tiny_tokenizer()
        row = Conversation.single("say user: assistant four four", "four")
        example = encode(row, tokenizer, 100)
        assert trained(example, tokenizer) == ["four<end>"]

    def test_a_template_that_trims_and_adds_space(self) -> None:
        tokenizer = tiny_tokenizer(TRIMMING)
        row = Conversation.single(" 2+2? ", "  four \n")
        assert trained(encode(row, tokenizer, 100), tokenizer) == ["four <end>"]

    def test_a_template_without_an_end_gets_the_end_of_text(self) -> None:
        tokenizer = tiny_tokenizer(PLAIN.replace("assistant: a{%", "assistant: {%"))
        example = encode(Conversation.single("2+2?", "four"), tokenizer, 100)
        assert trained(example, tokenizer) == ["four<end>"]

    def test_a_template_that_opens_with_a_thinking_mark(self) -> None:
        tokenizer = tiny_tokenizer(THINKING)
        example = encode(Conversation.single("2+2?", "four"), tokenizer, 100)
        assert trained(example, tokenizer) == ["four<end>"]

    @pytest.mark.parametrize("text", ["é", "日本語 🙂", "line\nline", "a\tb"])
    def test_any_text(self, text: str) -> None:
        tokenizer = tiny_tokenizer()
        row = Conversation.single(text, text)
        assert trained(encode(row, tokenizer, 100), tokenizer) == [f"{text}<end>"]


class TestBoundary:
    """E9, its label part: prompts whose tokenisation merges across the boundary."""

    merging = PLAIN.replace(
        "{{ m['content'] }}", "{{ 'a' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )

    def test_the_tokenizer_does_merge_there(self) -> None:
        tokenizer = tiny_tokenizer(self.merging, merges=(("a", "b"),))
        whole = tokenizer("assistant: abc", add_special_tokens=False)["input_ids"]
        head = tokenizer("assistant: a", add_special_tokens=False)["input_ids"]
        assert whole[: len(head)] != head

    def test_no_token_is_half_prompt_half_answer(self) -> None:
        tokenizer = tiny_tokenizer(self.merging, merges=(("a", "b"),))
        row = Conversation.single("2+2?", "bcb")
        example = encode(row, tokenizer, 100)
        assert trained(example, tokenizer) == ["bcb<end>"]
        assert isinstance(example, Example)
        assert prompt_ids(example) == served(row, tokenizer)

    def test_the_prompt_is_what_serving_feeds_for_every_template(self) -> None:
        for template in (TRIMMING, PLAIN.replace("assistant: a{%", "assistant: {%"), self.merging):
            tokenizer = tiny_tokenizer(template, merges=(("a", "b"), ("Ġ", "b"), ("Ċ", "b")))
            row = Conversation.single("abab", "bab")
            example = encode(row, tokenizer, 100)
            assert isinstance(example, Example)
            assert prompt_ids(example) == served(row, tokenizer)

    def test_a_tokenizer_that_opens_every_text_with_a_space(self) -> None:
        # Tokenized apart, the answer must not gain the space that a text's first word has.
        pieces = ["<unk>", "▁", "\n", "q", "Q", "A", ":", "no", "n", "o", ":n", "<end>"]
        model = Tokenizer(
            models.Unigram(
                [(piece, float(len(piece) + 2 * (piece == ":n"))) for piece in pieces], 0
            )
        )
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        model.decoder = decoders.Metaspace(prepend_scheme="always")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")
        tokenizer.chat_template = (
            "{% for m in messages %}{{ 'A:' if m['role'] == 'assistant' else 'Q:' }}{{ m['content'] }}"
            "{{ '\n' if not loop.last }}{% endfor %}{{ '\nA:' if add_generation_prompt }}"
        )
        row = Conversation.single("q", "no")
        assert ":n" in tokenizer.tokenize("Q:q\nA:no")
        example = encode(row, tokenizer, 100)
        assert isinstance(example, Example)
        assert prompt_ids(example) == served(row, tokenizer)
        answer = [label for label in example.labels if label != IGNORED]
        assert tokenizer.convert_ids_to_tokens(answer) == ["no", "<end>"]

    def test_merges_inside_the_answer_are_kept(self) -> None:
        tokenizer = tiny_tokenizer(merges=(("a", "b"),))
        example = encode(Conversation.single("ab", "abab"), tokenizer, 100)
        assert isinstance(example, Example)
        assert sum(label != IGNORED for label in example.labels) == 3  # ab, ab, <end>


class TestLength:
    def test_long_rows_lose_their_end(self) -> None:
        tokenizer = tiny_tokenizer()
        row = Conversation.single("2+2?", "four and more")
        example = encode(row, tokenizer, 12)
        assert isinstance(example, Example)
        assert len(example.input_ids) == 12
        assert trained(example, tokenizer) == ["four "]

    @pytest.mark.parametrize("length", [3, 7])
    def test_a_row_without_room_for_its_answer_is_a_fault(self, length: int) -> None:
        fault = encode(Conversation.single("2+2?", "four"), tiny_tokenizer(), length)
        assert isinstance(fault, RowFault)
        assert "no room for the answer: the row has 12 tokens" in fault.reason

    def test_one_answer_token_is_enough(self) -> None:
        tokenizer = tiny_tokenizer()
        assert trained(encode(Conversation.single("2+2?", "four"), tokenizer, 8), tokenizer) == [
            "f"
        ]


class TestFaults:
    @pytest.mark.parametrize("token", ["<end>", "<user>", "<assistant>", "<pad>"])
    def test_reserved_tokens_in_any_turn(self, token: str) -> None:
        for index, row in enumerate(
            (Conversation.single(f"a{token}b", "c"), Conversation.single("a", f"b {token}"))
        ):
            fault = encode(row, tiny_tokenizer(), 100)
            assert isinstance(fault, RowFault)
            assert fault.field == f"messages[{index}].content"
            assert "reserves" in fault.reason
            assert token not in str(fault)

    def test_roles_that_the_template_refuses(self) -> None:
        fault = encode(TALK, tiny_tokenizer(STRICT), 100)
        assert isinstance(fault, RowFault)
        assert "chat template" in fault.reason

    def test_a_template_that_does_not_show_the_answer(self) -> None:
        upper = "{% for m in messages %}<user>{{ m['content'] | upper }}<end>{% endfor %}"
        fault = encode(Conversation.single("a", "b"), tiny_tokenizer(upper), 100)
        assert isinstance(fault, RowFault)
        assert "does not show" in fault.reason

    def test_every_faulty_row_is_named(self) -> None:
        rows = [
            Conversation(Conversation.single(prompt, "ok").messages, line)
            for line, prompt in enumerate(["fine", "bad <end>", "fine", "long " * 30], start=1)
        ]
        with pytest.raises(InvalidRows) as caught:
            encode_rows(rows, tiny_tokenizer(), 40, param="training_file")
        assert [fault.line for fault in caught.value.faults] == [2, 4]
        assert caught.value.param == "training_file"

    def test_rows_without_faults(self) -> None:
        rows = [Conversation(Conversation.single("a", "b").messages, line) for line in (3, 5)]
        assert [example.line for example in encode_rows(rows, tiny_tokenizer(), 40)] == [3, 5]


class TestCollate:
    def test_pads_on_the_right(self) -> None:
        short = Example((1, 2), (IGNORED, 2))
        long = Example((3, 4, 5, 6), (IGNORED, 4, IGNORED, 6))
        batch = collate([short, long], pad_id=9)
        assert batch.input_ids.tolist() == [[1, 2, 9, 9], [3, 4, 5, 6]]
        assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert batch.labels.tolist() == [[IGNORED, 2, IGNORED, IGNORED], [IGNORED, 4, IGNORED, 6]]
        assert batch.input_ids.dtype == torch.long
        assert batch.trained_tokens == 3
        assert batch.rows == 2

    def test_a_first_token_is_never_predicted(self) -> None:
        assert collate([Example((1, 2), (1, 2))], pad_id=9).trained_tokens == 1


class TestPack:
    ROWS = (Example((1, 2, 3), (IGNORED, 2, 3)), Example((4, 5), (4, 5)))

    def test_lays_rows_end_to_end_with_positions_of_their_own(self) -> None:
        batch = pack(self.ROWS)
        assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
        assert batch.position_ids is not None
        assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
        assert batch.rows == 2

    def test_no_row_is_asked_for_the_first_token_of_the_next(self) -> None:
        batch = pack(self.ROWS)
        assert batch.labels.tolist() == [[IGNORED, 2, 3, IGNORED, 5]]
        assert batch.trained_tokens == collate(self.ROWS, 0).trained_tokens == 3


class TestWeights:
    def test_an_answer_of_weight_0_is_read_and_not_trained(self) -> None:
        tokenizer = tiny_tokenizer()
        turns = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "wrong", "weight": 0},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "right", "weight": 1},
        ]
        example = encode(as_row({"messages": turns}), tokenizer, 64)  # type: ignore[arg-type]
        assert trained(example, tokenizer) == ["right<end>"]
        assert isinstance(example, Example)
        assert "wrong" in tokenizer.decode(example.input_ids)


def as_row(row: dict[str, object], number: int = 1) -> Row:
    parsed = parse_line(json.dumps(row).encode(), number)
    assert not isinstance(parsed, RowFault), str(parsed)
    return parsed


def pair(prompt: str, preferred: str, other: str, number: int = 1) -> Pair:
    row = as_row(
        {
            "input": {"messages": [{"role": "user", "content": prompt}]},
            "preferred_output": [{"role": "assistant", "content": preferred}],
            "non_preferred_output": [{"role": "assistant", "content": other}],
        },
        number,
    )
    assert isinstance(row, Pair)
    return row


class TestPairs:
    def test_both_answers_follow_the_same_prompt_and_nothing_else_is_trained(self) -> None:
        tokenizer = tiny_tokenizer()
        encoded = encode_pairs([pair("2+2?", "4", "five")], tokenizer, 64)
        sides = [*encoded.examples, *encoded.non_preferred]
        assert [trained(side, tokenizer) for side in sides] == [["4<end>"], ["five<end>"]]
        assert prompt_ids(sides[0]) == prompt_ids(sides[1])
        assert prompt_ids(sides[0]) == served(pair("2+2?", "4", "five").preferred, tokenizer)

    def test_faults_are_named_where_they_are_in_the_row(self) -> None:
        rows = [
            pair("a", "b", "c", 1),
            pair("a <user>", "b", "c", 2),
            pair("a", "b", "c <end>", 3),
            pair("a", "<assistant>", "c", 4),
            pair("x" * 70, "b", "c", 5),
            pair("a", "y" * 64 + "1", "y" * 64 + "2", 6),
        ]
        with pytest.raises(InvalidRows) as caught:
            encode_pairs(rows, tiny_tokenizer(), 64)
        assert [(f.line, f.field) for f in caught.value.faults] == [
            (2, "input.messages[0].content"),
            (3, "non_preferred_output[0].content"),
            (4, "preferred_output[0].content"),
            (5, "preferred_output"),
            (6, None),
        ]
        assert caught.value.faults[-1].reason == (
            "both answers have the same 64 tokens, where rows are cut"
        )
        assert caught.value.faulty_rows == 5

    def test_answers_that_a_template_makes_equal_are_refused(self) -> None:
        template = (
            "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | lower }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        with pytest.raises(InvalidRows):
            encode_pairs([pair("a", "Yes", "yes")], tiny_tokenizer(template), 64)

    def test_a_data_set_of_either_kind_is_encoded_as_what_it_is(self) -> None:
        tokenizer = tiny_tokenizer()
        one = Conversation.single("a", "b")
        plain = encode_data_set([one], tokenizer, 64)
        assert (plain.examples, plain.non_preferred) == (encode_rows([one], tokenizer, 64), [])
        both = encode_data_set([pair("a", "b", "c")], tokenizer, 64)
        assert both == encode_pairs([pair("a", "b", "c")], tokenizer, 64)
        assert encode_data_set([], tokenizer, 64).examples == []
