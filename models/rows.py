"""A row of a data set: one JSON Lines line in, one conversation, one pair of answers or one named fault out.

This is the only parser of rows. The upload route reads a file through it before anything is stored, and
the worker reads the same file through it again before training. It knows nothing of tokenizers, so
faults that depend on a base model (reserved tokens, length) are found in `worker.data`.

Three shapes are conversations, for supervised fine-tuning:

* chat: ``{"messages": [{"role", "content", "weight"?}, ...]}``, the last message by the assistant
* completion: ``{"prompt", "completion"}``
* instruction: ``{"instruction", "input"?, "output"}``

One is a pair of answers to one prompt, for preference optimisation:

* ``{"input": {"messages": [...]}, "preferred_output": [answer], "non_preferred_output": [answer]}``, or the
  same with ``preferred_completion`` and ``non_preferred_completion``

A file has rows of one kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from models.errors import DomainError

Role = Literal["system", "user", "assistant"]

MAX_FAULTS = 100
MAX_LINE_BYTES = 1_000_000
# Blank and faulty lines count: a file of nothing but line breaks must not hold the reader for minutes.
MAX_LINES = 5_000_000
MAX_MESSAGES = 256
# Refused by name, because silently training on half of such a row would teach something else.
UNSUPPORTED_MESSAGE_KEYS = ("tool_calls", "function_call", "tool_call_id")
UNSUPPORTED_ROW_KEYS = ("tools", "functions")
ROLE_OF = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# The two spellings of a pair's answers: the preferred one's key first.
PAIR_KEYS = (
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `is_trained` is False for turns that the loss must skip."""

    role: Role
    content: str
    is_trained: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training row: at least one trained assistant turn, the last turn by the assistant."""

    messages: tuple[Message, ...]
    line: int = 0

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every turn before the last answer: what a model is given when it is asked again."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn."""
        return self.messages[-1].content

    @classmethod
    def single(cls, prompt: str, answer: str) -> Conversation:
        """One user turn and one trained answer."""
        return cls((Message("user", prompt), Message("assistant", answer, is_trained=True)))

    def to_dict(self) -> dict[str, object]:
        """Give the row in the chat shape, as `parse_line` reads it back."""
        messages: list[dict[str, object]] = []
        for message in self.messages:
            entry: dict[str, object] = {"role": message.role, "content": message.content}
            if message.role == "assistant" and not message.is_trained:
                entry["weight"] = 0
            messages.append(entry)
        return {"messages": messages}


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of preferences: two conversations that differ in their last answer, the only trained turn."""

    preferred: Conversation
    non_preferred: Conversation

    @property
    def line(self) -> int:
        """Its number in the file, counted from 1."""
        return self.preferred.line

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as it should have gone."""
        return self.preferred.messages

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every turn before the two answers."""
        return self.preferred.prompt


Row = Conversation | Pair


@dataclass(frozen=True, slots=True)
class RowFault:
    """One faulty line: its number, counted from 1, the field, and a reason free of row text."""

    line: int
    reason: str
    field: str | None = None

    def __str__(self) -> str:
        """Read as a person would say it: where, then why."""
        where = f"line {self.line}" + (f", {self.field}" if self.field else "")
        return f"{where}: {self.reason}"


class InvalidRows(DomainError):
    """The data set has faulty rows."""

    code = "invalid_training_file"

    def __init__(self, faults: list[RowFault], *, faulty_rows: int, param: str = "file") -> None:
        """Name the first three in the message and carry up to `MAX_FAULTS` beside it."""
        self.faults = faults[:MAX_FAULTS]
        self.faulty_rows = faulty_rows
        shown = "; ".join(str(fault) for fault in self.faults[:3])
        more = f" (and {faulty_rows - 3} more)" if faulty_rows > 3 else ""
        noun = "row is" if faulty_rows == 1 else "rows are"
        super().__init__(f"{faulty_rows} {noun} faulty: {shown}{more}.", param=param)

    def extra(self) -> dict[str, object]:
        """Every fault kept, for clients that want to list them."""
        return {
            "faulty_rows": self.faulty_rows,
            "faults": [{"line": f.line, "field": f.field, "reason": f.reason} for f in self.faults],
        }


class _Fault(Exception):
    """A fault found inside one row, before its line number is attached."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        self.reason = reason
        self.field = field
        super().__init__(reason)


def parse_line(line: bytes, number: int) -> Row | RowFault:
    """Read one line of JSON Lines.

    Args:
        line: the raw bytes, with or without the line break; a UTF-8 byte order mark is allowed on line 1.
        number: its number in the file, counted from 1.
    """
    try:
        row = _decode(line, number)
        return _pair(row, number) if _is_pair(row) else Conversation(_messages(row), line=number)
    except _Fault as fault:
        return RowFault(number, fault.reason, fault.field)


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream of bytes into lines, without their breaks, in constant memory.

    The end of an over-long line is dropped; what stays is still too long for `parse_line`, which says so.
    """
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        rest = rest[: MAX_LINE_BYTES + 1]
    if rest:
        yield rest


def parse_lines(lines: Iterable[bytes], shape: type[Row] | None = None) -> Iterator[Row | RowFault]:
    """Read a whole file lazily. Blank lines are skipped; line numbers still count them.

    Args:
        lines: the file.
        shape: what its rows must be; none: what the first good one is. Rows of the other kind are faults.
    """
    is_asked = shape is not None
    for number, line in enumerate(lines, start=1):
        if number > MAX_LINES:
            yield RowFault(number, f"the file has more than {MAX_LINES:,} lines")
            return
        if not line.strip():
            continue
        row = parse_line(line, number)
        if not isinstance(row, RowFault):
            shape = shape or type(row)
            if not isinstance(row, shape):
                row = RowFault(number, _misplaced(row, is_asked=is_asked))
        yield row


def check_rows(lines: Iterable[bytes], *, param: str = "file") -> int:
    """Count the rows of a file, or raise `InvalidRows` naming every faulty line."""
    count = faulty = 0
    faults: list[RowFault] = []
    for row in parse_lines(lines):
        count += 1
        if isinstance(row, RowFault):
            faulty += 1
            if len(faults) < MAX_FAULTS:
                faults.append(row)
    if count == 0:
        raise InvalidRows([RowFault(1, "the file has no rows")], faulty_rows=1, param=param)
    if faulty:
        raise InvalidRows(faults, faulty_rows=faulty, param=param)
    return count


def check_first_row(lines: Iterable[bytes], shape: type[Row], *, param: str = "file") -> None:
    """Look at the first row of a file that was checked when it came, so that one row speaks for all.

    Raises:
        InvalidRows: naming it, if it is not of this kind.
    """
    first = next(parse_lines(lines, shape), None)
    if isinstance(first, RowFault):
        raise InvalidRows([first], faulty_rows=1, param=param)


def read_conversations(lines: Iterable[bytes], *, param: str = "file") -> list[Conversation]:
    """Read every row of a file, or raise `InvalidRows` naming every faulty line."""
    rows = read_data_set(lines, Conversation, param=param)
    return [row for row in rows if isinstance(row, Conversation)]


def read_data_set(lines: Iterable[bytes], shape: type[Row], *, param: str = "file") -> list[Row]:
    """Read every row of a file of conversations or of pairs.

    Raises:
        InvalidRows: naming every line that is faulty or of the other kind.
    """
    rows = list(parse_lines(lines, shape))
    faults = [row for row in rows if isinstance(row, RowFault)]
    if faults:
        raise InvalidRows(faults, faulty_rows=len(faults), param=param)
    return [row for row in rows if not isinstance(row, RowFault)]


def _misplaced(row: Row, *, is_asked: bool) -> str:
    if isinstance(row, Pair):
        found, right = "is a preference pair", "which is for the method 'dpo'"
    else:
        found, right = "is not a preference pair", "which the method 'dpo' needs"
    return f"{found}, {right}" if is_asked else f"{found}, but the rows before it are otherwise"


def _decode(line: bytes, number: int) -> dict[str, object]:
    if len(line) > MAX_LINE_BYTES:
        raise _Fault(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Fault(f"not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise _Fault(f"not valid JSON (column {error.pos + 1}: {error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise _Fault("not valid JSON (nested too deeply, or a number out of range)") from error
    if not isinstance(value, dict):
        raise _Fault("a row must be a JSON object")
    return value


def _is_pair(row: dict[str, object]) -> bool:
    named = any(key in row for keys in PAIR_KEYS for key in keys)
    return named or ("instruction" not in row and isinstance(row.get("input"), dict))


def _pair(row: dict[str, object], number: int) -> Pair:
    preferred_key, other_key = _pair_keys(row)
    prompt = _prompt(row)
    preferred, other = (_answer(row, key) for key in (preferred_key, other_key))
    if preferred.content.strip() == other.content.strip():
        raise _Fault(f'is the same as "{preferred_key}"', other_key)
    return Pair(
        Conversation((*prompt, preferred), line=number),
        Conversation((*prompt, other), line=number),
    )


def _pair_keys(row: dict[str, object]) -> tuple[str, str]:
    first, second = ([key for key in keys if key in row] for keys in PAIR_KEYS)
    if first and second:
        raise _Fault(f'has both spellings, "{first[0]}" and "{second[0]}"; use one')
    keys = PAIR_KEYS[1] if second else PAIR_KEYS[0]
    for key in keys:
        if key not in row:
            raise _Fault("is missing", key)
    return keys


def _prompt(row: dict[str, object]) -> tuple[Message, ...]:
    if "messages" in row:
        raise _Fault('belongs into "input" in a preference pair', "messages")
    given = row.get("input")
    if not isinstance(given, dict):
        raise _Fault('must be an object with "messages"', "input")
    _refuse_tools(given, "input.")
    prompt = _turns(given.get("messages"), "input.messages", MAX_MESSAGES - 1)
    if prompt[-1].role == "assistant":
        raise _Fault("the last message must not be by the assistant", "input.messages")
    # Only the two answers are compared: whatever weight an earlier one has.
    return tuple(Message(message.role, message.content) for message in prompt)


def _answer(row: dict[str, object], key: str) -> Message:
    value = row[key]
    if not isinstance(value, list) or len(value) != 1:
        raise _Fault("must be a list with exactly one message", key)
    message = _message(value[0], f"{key}[0]")
    if message.role != "assistant":
        raise _Fault("must be assistant", f"{key}[0].role")
    if not message.is_trained:
        raise _Fault("must not be 0: this answer is what is learnt from", f"{key}[0].weight")
    return message


def _refuse_tools(row: dict[str, object], where: str = "") -> None:
    for key in UNSUPPORTED_ROW_KEYS:
        if row.get(key):
            raise _Fault("tool and function calls are not supported", f"{where}{key}")


def _messages(row: dict[str, object]) -> tuple[Message, ...]:
    _refuse_tools(row)
    if "messages" in row:
        return _chat(row["messages"])
    if "prompt" in row or "completion" in row:
        return _exchange(_text(row, "prompt"), _text(row, "completion"))
    if "instruction" in row or "output" in row:
        instruction, context = _text(row, "instruction"), _optional_text(row, "input")
        prompt = f"{instruction}\n\n{context}" if context else instruction
        return _exchange(prompt, _text(row, "output"))
    raise _Fault(
        'a row needs "messages", or "prompt" and "completion", or "instruction" and "output", or "input", '
        '"preferred_output" and "non_preferred_output"'
    )


def _exchange(prompt: str, answer: str) -> tuple[Message, ...]:
    return (Message("user", prompt), Message("assistant", answer, is_trained=True))


def _turns(value: object, where: str, most: int = MAX_MESSAGES) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Fault("must be a list with at least one message", where)
    if len(value) > most:
        raise _Fault(f"has more than {most} messages", where)
    return tuple(_message(entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _chat(value: object) -> tuple[Message, ...]:
    messages = _turns(value, "messages")
    if messages[-1].role != "assistant":
        raise _Fault("the last message must be by the assistant", "messages")
    if len(messages) == 1:
        raise _Fault("there is nothing before the assistant's message", "messages")
    if not any(message.is_trained for message in messages):
        raise _Fault("no assistant message is trained (every weight is 0)", "messages")
    return messages


def _message(entry: object, where: str) -> Message:
    if not isinstance(entry, dict):
        raise _Fault("must be an object", where)
    role = entry.get("role")
    if not isinstance(role, str) or role not in ROLE_OF:
        raise _Fault("must be system, developer, user or assistant", f"{where}.role")
    for key in UNSUPPORTED_MESSAGE_KEYS:
        if entry.get(key) is not None:
            raise _Fault("tool and function calls are not supported", f"{where}.{key}")
    content = _content(entry.get("content"), f"{where}.content")
    weight = entry.get("weight")
    if weight is not None and role != "assistant":
        raise _Fault("only assistant messages may have a weight", f"{where}.weight")
    if weight not in (None, 0, 1) or isinstance(weight, (bool, float)):
        raise _Fault("must be 0 or 1", f"{where}.weight")
    return Message(
        ROLE_OF[role],  # type: ignore[arg-type]
        content,
        is_trained=role == "assistant" and weight != 0,
    )


def _content(value: object, where: str) -> str:
    if isinstance(value, list):
        parts = []
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text"):
                raise _Fault("only text parts are supported", where)
            parts.append(part.get("text"))
        if not all(isinstance(part, str) for part in parts):
            raise _Fault("a text part must have a string", where)
        value = "".join(str(part) for part in parts)
    return _filled(value, where)


def _text(row: dict[str, object], key: str) -> str:
    if key not in row:
        raise _Fault("is missing", key)
    return _filled(row[key], key)


def _optional_text(row: dict[str, object], key: str) -> str:
    value = row.get(key)
    if value is None or value == "":
        return ""
    return _filled(value, key)


def _filled(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _Fault("must be a string", where)
    if not value.strip():
        raise _Fault("is empty", where)
    if "\x00" in value:
        raise _Fault("contains a NUL character", where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Fault("contains half of a surrogate pair", where) from error
    return value
