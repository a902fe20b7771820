"""The row parser: every accepted shape, every fault by line and field, and no row text in a message."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import rows
from models.rows import (
    MAX_FAULTS,
    MAX_LINE_BYTES,
    MAX_MESSAGES,
    Conversation,
    InvalidRows,
    Message,
    Pair,
    RowFault,
    check_first_row,
    check_rows,
    parse_line,
    parse_lines,
    read_conversations,
    read_data_set,
    split_lines,
)

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}
# Stands in every faulty row below; no message may repeat it.
SECRET = "zebra-crossing-7719"


def line(value: object) -> bytes:
    return json.dumps(value).encode()


def chat(*messages: object) -> bytes:
    return line({"messages": list(messages)})


def pair(**changes: object) -> dict[str, object]:
    """A good pair, changed; a value of None leaves the key out."""
    whole: dict[str, object] = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def row(content: bytes, number: int = 1) -> Conversation:
    parsed = parse_line(content, number)
    assert isinstance(parsed, Conversation), parsed
    return parsed


class TestAcceptedShapes:
    def test_chat(self) -> None:
        parsed = row(chat({"role": "system", "content": "Be brief."}, USER, ANSWER), 7)
        assert parsed.messages == (
            Message("system", "Be brief."),
            Message("user", "hello"),
            Message("assistant", "hi", is_trained=True),
        )
        assert parsed.line == 7
        assert parsed.answer == "hi"
        assert parsed.prompt == parsed.messages[:2]

    def test_prompt_and_completion(self) -> None:
        assert row(line({"prompt": "2+2", "completion": "4"})).messages == (
            Message("user", "2+2"),
            Message("assistant", "4", is_trained=True),
        )

    def test_instruction_with_input(self) -> None:
        parsed = row(line({"instruction": "Translate.", "input": "chat", "output": "cat"}))
        assert parsed.messages[0].content == "Translate.\n\nchat"
        assert parsed.answer == "cat"

    @pytest.mark.parametrize("value", [{}, {"input": ""}, {"input": None}])
    def test_instruction_without_input(self, value: dict[str, object]) -> None:
        parsed = row(line({"instruction": "Count.", "output": "1 2 3", **value}))
        assert parsed.messages[0].content == "Count."

    def test_developer_is_the_new_word_for_system(self) -> None:
        parsed = row(chat({"role": "developer", "content": "Be brief."}, USER, ANSWER))
        assert parsed.messages[0].role == "system"

    def test_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
        assert row(chat({"role": "user", "content": parts}, ANSWER)).messages[0].content == "hello"

    def test_a_weight_of_zero_leaves_an_answer_out_of_the_loss(self) -> None:
        parsed = row(chat(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}))
        assert [message.is_trained for message in parsed.messages] == [False, False, False, True]

    def test_unknown_keys_beside_a_row_are_ignored(self) -> None:
        assert row(line({"prompt": "a", "completion": "b", "id": 5})).answer == "b"

    def test_a_byte_order_mark_on_the_first_line(self) -> None:
        assert row(b"\xef\xbb\xbf" + chat(USER, ANSWER), 1).answer == "hi"

    def test_windows_line_breaks(self) -> None:
        assert row(chat(USER, ANSWER) + b"\r\n").answer == "hi"

    def test_any_unicode_text(self) -> None:
        assert row(line({"prompt": "Grüße 🦓", "completion": "‮x\x7f"})).answer == "‮x\x7f"


ROW = 'a row needs "messages", or "prompt" and "completion", or "instruction" and "output"'
FAULTS = [
    ("a list", line([SECRET]), None, "a row must be a JSON object"),
    ("a string", line(SECRET), None, "a row must be a JSON object"),
    ("null", b"null", None, "a row must be a JSON object"),
    ("no known key", line({"text": SECRET}), None, ROW),
    ("cut short", line({"prompt": SECRET})[:-2], None, "not valid JSON (column 12: Unterminated"),
    ("single quotes", b"{'prompt': '%s'}" % SECRET.encode(), None, "not valid JSON (column 2: "),
    ("a trailing comma", b'{"prompt": "%s",}' % SECRET.encode(), None, "not valid JSON (column "),
    ("a bad escape", b'{"prompt": "%s\\q"}' % SECRET.encode(), None, "not valid JSON (column 32: "),
    ("two rows in a line", line({"a": 1}) * 2, None, "not valid JSON (column 9: Extra data)"),
    ("an empty object, cut by the break", b'{"a":\n', None, "not valid JSON (column 7: "),
    ("nested objects", b'{"a":' * 50_000, None, "not valid JSON (nested too deeply"),
    ("nested lists", b"[" * 200_000, None, "not valid JSON (nested too deeply"),
    ("an endless number", b'{"a": %s}' % (b"9" * 5000), None, "not valid JSON (nested too deeply"),
    ("not UTF-8", b'{"prompt": "\xff"}', None, "not UTF-8 (byte 13)"),
    ("UTF-16", line({"prompt": SECRET}).decode().encode("utf-16"), None, "not UTF-8 (byte 1)"),
    ("a huge line", b" " * MAX_LINE_BYTES + b"{}", None, "the line is longer than 1,000,000 bytes"),
    ("no completion", line({"prompt": SECRET}), "completion", "is missing"),
    ("no prompt", line({"completion": SECRET}), "prompt", "is missing"),
    ("no output", line({"instruction": SECRET}), "output", "is missing"),
    ("no instruction", line({"output": SECRET}), "instruction", "is missing"),
    ("a number", line({"prompt": 5, "completion": SECRET}), "prompt", "must be a string"),
    ("not a number", b'{"prompt": NaN, "completion": ""}', "prompt", "must be a string"),
    ("blank", line({"prompt": " \n", "completion": SECRET}), "prompt", "is empty"),
    (
        "an input of blanks",
        line({"instruction": SECRET, "input": " ", "output": "x"}),
        "input",
        "is ",
    ),
    (
        "an input that is a list",
        line({"instruction": SECRET, "input": [SECRET], "output": "x"}),
        "input",
        "must be a string",
    ),
    ("NUL", line({"prompt": SECRET + "\0", "completion": "x"}), "prompt", "contains a NUL"),
    (
        "half of a surrogate pair",
        b'{"prompt": "%s\\ud83e", "completion": "x"}' % SECRET.encode(),
        "prompt",
        "contains half of a surrogate pair",
    ),
    ("messages that are no list", line({"messages": SECRET}), "messages", "must be a list"),
    ("no message", line({"messages": []}), "messages", "must be a list with at least one"),
    ("too many messages", chat(*[USER] * MAX_MESSAGES, ANSWER), "messages", "has more than 256"),
    ("a message that is no object", chat(SECRET, ANSWER), "messages[0]", "must be an object"),
    ("an unknown role", chat(USER, {"role": SECRET}), "messages[1].role", "must be system, "),
    ("a role of no text", chat({"role": [SECRET]}), "messages[0].role", "must be system, "),
    ("no role", chat({"content": SECRET}), "messages[0].role", "must be system, "),
    (
        "a tool's message",
        chat({"role": "tool", "content": SECRET}),
        "messages[0].role",
        "must be system, ",
    ),
    (
        "a tool call",
        chat(USER, {"role": "assistant", "tool_calls": [SECRET]}),
        "messages[1].tool_calls",
        "tool and function calls are not supported",
    ),
    ("no content", chat({"role": "user"}, ANSWER), "messages[0].content", "must be a string"),
    (
        "an image",
        chat({"role": "user", "content": [{"type": "image_url", "image_url": SECRET}]}, ANSWER),
        "messages[0].content",
        "only text parts are supported",
    ),
    (
        "a part without text",
        chat({"role": "user", "content": [{"type": "text"}]}, ANSWER),
        "messages[0].content",
        "a text part must have a string",
    ),
    ("no parts", chat({"role": "user", "content": []}, ANSWER), "messages[0].content", "is empty"),
    ("a question at the end", chat(ANSWER, USER), "messages", "the last message must be by"),
    ("an answer to nothing", chat(ANSWER), "messages", "there is nothing before"),
    (
        "nothing to train on",
        chat(USER, {**ANSWER, "weight": 0}),
        "messages",
        "no assistant message is trained",
    ),
    (
        "a weight on a question",
        chat({**USER, "weight": 1}, ANSWER),
        "messages[0].weight",
        "only assistant messages",
    ),
    *(
        (f"a weight of {w!r}", chat(USER, {**ANSWER, "weight": w}), "messages[1].weight", "must be")
        for w in (2, -1, 0.5, 1.0, True, False, SECRET, [0], {})
    ),
    (
        "tools",
        line({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}),
        "tools",
        "tool and function calls are not supported",
    ),
    (
        "functions",
        line({"messages": [USER, ANSWER], "functions": [SECRET]}),
        "functions",
        "tool and function calls are not supported",
    ),
]
SECRET_ANSWER = {"role": "assistant", "content": SECRET}
PAIR_FAULTS = [
    ("no input", pair(input=None), "input", 'must be an object with "messages"'),
    ("an input of no object", pair(input=SECRET), "input", 'must be an object with "messages"'),
    ("no messages", pair(input={}), "input.messages", "must be a list with at least one"),
    ("an empty list", pair(input={"messages": []}), "input.messages", "must be a list with"),
    (
        "too many messages",
        pair(input={"messages": [USER] * MAX_MESSAGES}),
        "input.messages",
        "has more than 255",
    ),
    (
        "an answer at the end of the prompt",
        pair(input={"messages": [USER, SECRET_ANSWER]}),
        "input.messages",
        "the last message must not be by the assistant",
    ),
    (
        "an empty question",
        pair(input={"messages": [USER, {"role": "user", "content": " "}]}),
        "input.messages[1].content",
        "is empty",
    ),
    (
        "a tool's message",
        pair(input={"messages": [{"role": "tool", "content": SECRET}]}),
        "input.messages[0].role",
        "must be system, ",
    ),
    (
        "tools",
        pair(input={"messages": [USER], "tools": [{"type": "function", "function": SECRET}]}),
        "input.tools",
        "tool and function calls are not supported",
    ),
    ("no preferred answer", pair(preferred_output=None), "preferred_output", "is missing"),
    ("no other answer", pair(non_preferred_output=None), "non_preferred_output", "is missing"),
    (
        "an answer outside a list",
        pair(preferred_output=SECRET_ANSWER),
        "preferred_output",
        "must be a list with exactly one message",
    ),
    (
        "no answer",
        pair(non_preferred_output=[]),
        "non_preferred_output",
        "must be a list with exactly one message",
    ),
    (
        "two answers",
        pair(preferred_output=[ANSWER, SECRET_ANSWER]),
        "preferred_output",
        "must be a list with exactly one message",
    ),
    (
        "an answer by the user",
        pair(preferred_output=[{"role": "user", "content": SECRET}]),
        "preferred_output[0].role",
        "must be assistant",
    ),
    (
        "an empty answer",
        pair(non_preferred_output=[{"role": "assistant", "content": ""}]),
        "non_preferred_output[0].content",
        "is empty",
    ),
    (
        "a tool call",
        pair(preferred_output=[{"role": "assistant", "tool_calls": [SECRET]}]),
        "preferred_output[0].tool_calls",
        "tool and function calls are not supported",
    ),
    (
        "an answer that is not to be trained",
        pair(preferred_output=[{**ANSWER, "weight": 0}]),
        "preferred_output[0].weight",
        "must not be 0",
    ),
    (
        "the same answer twice",
        pair(preferred_output=[SECRET_ANSWER], non_preferred_output=[SECRET_ANSWER]),
        "non_preferred_output",
        'is the same as "preferred_output"',
    ),
    (
        "the same answer but for the space around it",
        pair(non_preferred_output=[{"role": "assistant", "content": " hi\n"}]),
        "non_preferred_output",
        'is the same as "preferred_output"',
    ),
    (
        "both spellings",
        pair(preferred_completion=[SECRET_ANSWER]),
        None,
        'has both spellings, "preferred_output" and "preferred_completion"',
    ),
    (
        "one answer in each spelling",
        pair(non_preferred_output=None, non_preferred_completion=[SECRET_ANSWER]),
        None,
        'has both spellings, "preferred_output" and "non_preferred_completion"',
    ),
    (
        "messages in the wrong place",
        pair(input=None, messages=[USER]),
        "messages",
        'belongs into "input"',
    ),
    ("only an input", {"input": {"messages": [USER]}}, "preferred_output", "is missing"),
]


class TestPairs:
    @pytest.mark.parametrize("ending", ["output", "completion"])
    def test_are_two_conversations_that_differ_in_their_last_answer(self, ending: str) -> None:
        system = {"role": "system", "content": "Be brief."}
        earlier = {"role": "assistant", "content": "well?", "weight": 1}
        whole = {
            "input": {"messages": [system, USER, earlier, USER], "tools": []},
            f"preferred_{ending}": [{"role": "assistant", "content": "hi"}],
            f"non_preferred_{ending}": [{"role": "assistant", "content": "no", "weight": 1}],
        }
        parsed = parse_line(line(whole), 7)
        assert isinstance(parsed, Pair)
        assert parsed.line == parsed.non_preferred.line == 7
        assert parsed.preferred.prompt == parsed.non_preferred.prompt == parsed.prompt
        assert [m.role for m in parsed.prompt] == ["system", "user", "assistant", "user"]
        assert not any(message.is_trained for message in parsed.prompt)
        answers = (parsed.preferred.messages[-1], parsed.non_preferred.messages[-1])
        assert [(m.content, m.is_trained) for m in answers] == [("hi", True), ("no", True)]
        assert parsed.messages == parsed.preferred.messages

    def test_may_answer_a_system_message_alone(self) -> None:
        given = pair(input={"messages": [{"role": "developer", "content": "Greet."}]})
        assert isinstance(parse_line(line(given), 1), Pair)

    @pytest.mark.parametrize(
        ("content", "field", "reason"),
        [f[1:] for f in PAIR_FAULTS],
        ids=[f[0] for f in PAIR_FAULTS],
    )
    def test_faults_name_the_line_the_field_and_the_reason(
        self, content: dict[str, object], field: str | None, reason: str
    ) -> None:
        fault = parse_line(line(content), 12)
        assert isinstance(fault, RowFault)
        assert (fault.line, fault.field) == (12, field)
        assert fault.reason.startswith(reason)
        assert SECRET not in str(fault)

    def test_an_instruction_with_a_faulty_input_is_still_an_instruction(self) -> None:
        fault = parse_line(line({"instruction": "a", "input": {}, "output": "b"}), 1)
        assert isinstance(fault, RowFault)
        assert str(fault) == "line 1, input: must be a string"


class TestFilesOfOneKind:
    PAIR, CHAT = line(pair()), chat(USER, ANSWER)

    def test_a_file_of_pairs_is_counted(self) -> None:
        assert check_rows([self.PAIR, b"", self.PAIR]) == 2

    def test_a_mixed_file_names_every_row_that_is_not_like_the_first(self) -> None:
        with pytest.raises(InvalidRows) as caught:
            check_rows([b"x", self.PAIR, self.CHAT, self.PAIR, self.CHAT])
        assert [(f.line, f.reason) for f in caught.value.faults[1:]] == [
            (3, "is not a preference pair, but the rows before it are otherwise"),
            (5, "is not a preference pair, but the rows before it are otherwise"),
        ]
        with pytest.raises(InvalidRows, match="line 2: is a preference pair, but"):
            check_rows([self.CHAT, self.PAIR])

    def test_the_first_row_says_whether_a_file_is_of_the_kind_that_is_needed(self) -> None:
        check_first_row([b"\n", self.PAIR], Pair)
        check_first_row([self.CHAT], Conversation)
        with pytest.raises(InvalidRows) as caught:
            check_first_row([b" ", self.PAIR, self.PAIR], Conversation, param="training_file")
        assert caught.value.message == (
            "1 row is faulty: line 2: is a preference pair, which is for the method 'dpo'."
        )
        assert caught.value.param == "training_file"
        with pytest.raises(InvalidRows, match="line 1: is not a preference pair, which the method"):
            check_first_row([self.CHAT], Pair)

    def test_no_more_than_the_first_row_is_read(self) -> None:
        def lines() -> Iterator[bytes]:
            yield self.PAIR
            raise AssertionError("read on")

        check_first_row(lines(), Pair)

    def test_reading_gives_only_the_kind_that_is_asked_for(self) -> None:
        assert len(read_data_set([self.PAIR] * 3, Pair)) == 3
        with pytest.raises(InvalidRows) as caught:
            read_conversations([self.PAIR] * 3)
        assert [fault.line for fault in caught.value.faults] == [1, 2, 3]


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "field", "reason"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
    )
    def test_name_the_line_the_field_and_the_reason(
        self, content: bytes, field: str | None, reason: str
    ) -> None:
        fault = parse_line(content, 12)
        assert isinstance(fault, RowFault)
        assert fault.line == 12
        assert fault.field == field
        assert fault.reason.startswith(reason)
        assert SECRET not in str(fault)

    def test_a_byte_order_mark_further_down_is_a_fault(self) -> None:
        fault = parse_line(b"\xef\xbb\xbf" + chat(USER, ANSWER), 2)
        assert isinstance(fault, RowFault)
        assert fault.reason.startswith("not valid JSON")

    @given(st.binary(max_size=200))
    def test_no_bytes_crash_the_parser(self, content: bytes) -> None:
        assert isinstance(parse_line(content, 1), (Conversation, Pair, RowFault))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            *("messages", "role", "content", "weight", "type", "text", "prompt"),
                            *("input", "tools", "preferred_output", "non_preferred_output"),
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    def test_no_json_crashes_the_parser(self, value: object) -> None:
        for content in (
            {"messages": [value]},
            value,
            pair(input=value),
            pair(preferred_output=value),
        ):
            assert isinstance(parse_line(line(content), 1), (Conversation, Pair, RowFault))


TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1
).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = draw(
        st.lists(
            st.builds(Message, st.sampled_from(["system", "user"]), TEXT)
            | st.builds(Message, st.just("assistant"), TEXT, st.booleans()),
            min_size=1,
            max_size=6,
        )
    )
    is_needed = not any(turn.is_trained for turn in turns)
    last = Message("assistant", draw(TEXT), is_trained=is_needed or draw(st.booleans()))
    return Conversation((*turns, last), line=draw(st.integers(1, 10**6)))


class TestRoundTrip:
    @given(conversations())
    def test_a_conversation_reads_back_as_it_was_written(self, conversation: Conversation) -> None:
        assert parse_line(line(conversation.to_dict()), conversation.line) == conversation

    def test_single(self) -> None:
        assert row(line(Conversation.single("a", "b").to_dict())).messages == (
            Message("user", "a"),
            Message("assistant", "b", is_trained=True),
        )


class TestParseLines:
    def test_blank_lines_are_skipped_and_counted(self) -> None:
        parsed = list(parse_lines([b"\n", chat(USER, ANSWER), b"  \r\n", b"", b"{}"]))
        assert [entry.line for entry in parsed] == [2, 5]

    def test_reading_is_lazy(self) -> None:
        def endless():  # type: ignore[no-untyped-def]
            while True:
                yield chat(USER, ANSWER)

        assert isinstance(next(parse_lines(endless())), Conversation)

    def test_a_file_of_too_many_lines_is_not_read_to_its_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows, "MAX_LINES", 10)
        source = iter([b"\n"] * 1000)
        assert [str(fault) for fault in parse_lines(source)] == [
            "line 11: the file has more than 10 lines"
        ]
        assert len(list(source)) == 989


class TestCheckRows:
    def test_counts_rows_not_lines(self) -> None:
        assert check_rows([chat(USER, ANSWER), b"\n", chat(USER, ANSWER)]) == 2

    @pytest.mark.parametrize("lines", [[], [b"\n", b"  "]])
    def test_a_file_without_rows_is_refused(self, lines: list[bytes]) -> None:
        with pytest.raises(InvalidRows, match="the file has no rows"):
            check_rows(lines)

    def test_names_the_first_three_and_carries_the_rest(self) -> None:
        lines = [chat(USER, ANSWER), *[line({"prompt": SECRET})] * 5]
        with pytest.raises(InvalidRows) as caught:
            check_rows(lines, param="training_file")
        error = caught.value
        assert error.message == (
            "5 rows are faulty: line 2, completion: is missing; line 3, completion: is missing; "
            "line 4, completion: is missing (and 2 more)."
        )
        assert error.param == "training_file"
        assert error.status_code == 400
        assert error.extra()["faulty_rows"] == 5
        assert error.extra()["faults"][4] == {  # type: ignore[index]
            "line": 6,
            "field": "completion",
            "reason": "is missing",
        }
        assert SECRET not in json.dumps(error.extra()) + error.message

    def test_one_faulty_row_reads_in_the_singular(self) -> None:
        with pytest.raises(InvalidRows) as caught:
            check_rows([b"[]"])
        assert caught.value.message == "1 row is faulty: line 1: a row must be a JSON object."

    @pytest.mark.parametrize("read", [check_rows, read_conversations])
    def test_counts_every_fault_and_lists_the_first_hundred(self, read) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(InvalidRows) as caught:
            read([b"[]"] * 250 + [chat(USER, ANSWER)])
        assert caught.value.faulty_rows == 250
        assert [fault.line for fault in caught.value.faults] == list(range(1, MAX_FAULTS + 1))

    def test_upload_and_worker_find_the_same_faults(self) -> None:
        lines = [chat(USER, ANSWER)] * 3 + [content for _, content, *_ in FAULTS]
        errors = []
        for read in (check_rows, read_conversations):
            with pytest.raises(InvalidRows) as caught:
                read(lines)
            errors.append(caught.value)
        assert errors[0].faults == errors[1].faults
        assert errors[0].message == errors[1].message

    def test_read_conversations_gives_the_rows_with_their_lines(self) -> None:
        read = read_conversations([b"\n", chat(USER, ANSWER)])
        assert [(entry.line, entry.answer) for entry in read] == [(2, "hi")]


class TestSplitLines:
    @given(st.lists(st.binary(max_size=6) | st.just(b"\n")))
    def test_is_bytes_split_whatever_the_chunks(self, chunks: list[bytes]) -> None:
        *whole, rest = b"".join(chunks).split(b"\n")
        assert list(split_lines(chunks)) == whole + ([rest] if rest else [])

    def test_an_endless_line_takes_no_more_memory_than_an_over_long_one(self) -> None:
        chunk = b"x" * (MAX_LINE_BYTES // 2)
        parts = [*[chunk] * 20, b"\n", chat(USER, ANSWER)]
        first, second = split_lines(parts)
        assert len(first) <= 2 * MAX_LINE_BYTES
        fault = parse_line(first, 1)
        assert isinstance(fault, RowFault)
        assert "longer than" in fault.reason
        assert row(second, 2).answer == "hi"
