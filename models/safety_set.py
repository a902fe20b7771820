"""A safety set: all that a provider supplies to align one base and to measure every model made from it.

A folder, so that it can be read, compared and kept under version control:

    safety.json             {"name", "judge": {"kind", ...}, "further_judges", "max_new_tokens", "tuning"}
    alignment.jsonl         rows: harmful prompts with refusals, and benign prompts with help
    harmful.jsonl           rows: harmful prompts with harmful answers, for the simulated attack alone; "category"?, "source"?
    canary.jsonl            held-out harmful rows: only their loss is taken, as an early warning
    harmful_prompts.jsonl   {"prompt", "category"}: the test prompts behind the harmful score
    harmless_prompts.jsonl  {"prompt", "category"?}: the test prompts behind over-refusal

and, for certification alone (all three or none; docs/certification.md):

    attack.jsonl               rows: harmful prompts with harmful answers, for simulated customers; "category"?
    customer.jsonl             rows: a harmless task, for simulated customers
    customer_validation.jsonl  rows: the same task, for their fine-tuning accuracy

A test prompt that a model was aligned on measures memory, not safety, so a set is refused in which one is,
exactly or nearly (`models.near_duplicates`). This module knows nothing of models or judges: it names
judges (`models.judges`), `worker.judge` opens them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from models.disjointness import Overlap, Place, asked, meetings, overlap
from models.errors import DomainError
from models.frozen import Frozen
from models.hyperparameters import Balance
from models.judges import JudgeSpec
from models.near_duplicates import Likeness, PromptIndex, prompt_key
from models.rows import Conversation, InvalidRows, Row, read_conversations
from models.tuning import TuningProtection

HEADER = "safety.json"
ALIGNMENT, HARMFUL, CANARY = "alignment.jsonl", "harmful.jsonl", "canary.jsonl"
HARMFUL_PROMPTS, HARMLESS_PROMPTS = "harmful_prompts.jsonl", "harmless_prompts.jsonl"
FILES = (HEADER, ALIGNMENT, HARMFUL, CANARY, HARMFUL_PROMPTS, HARMLESS_PROMPTS)
ATTACK, CUSTOMER, VALIDATION = "attack.jsonl", "customer.jsonl", "customer_validation.jsonl"
CERTIFICATION_FILES = (ATTACK, CUSTOMER, VALIDATION)

MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_TEST_PROMPTS = 10_000
MAX_FURTHER_JUDGES = 4
MAX_LINES_NAMED = 10
MAX_CATEGORY = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InvalidSafetySet(DomainError):
    """The safety set cannot be used."""

    code = "invalid_safety_set"

    def __init__(self, file: str, reason: str, line: int | None = None) -> None:
        """Name the file, the line when there is one, and the reason, without any text of a row."""
        where = file if line is None else f"{file}, line {line}"
        super().__init__(f"{where}: {reason}", param="safety_set")


class SafetySetHeader(Frozen):
    """What `safety.json` says."""

    name: str = Field(min_length=1, max_length=100)
    judge: JudgeSpec = Field(description="The judge behind the harmful score.")
    further_judges: tuple[JudgeSpec, ...] = Field(
        (),
        max_length=MAX_FURTHER_JUDGES,
        description="Judges whose scores stand beside it; they show how far judges agree.",
    )
    max_new_tokens: int = Field(
        128, ge=1, le=4096, description="Length at which an answer to a test prompt is cut."
    )
    tuning: TuningProtection | None = Field(
        None, description="How customers' jobs on the base are protected; none: not at all."
    )


class HarmfulPrompt(Frozen):
    """One test prompt and the kind of harm that it asks for."""

    prompt: str = Field(min_length=1, max_length=100_000)
    category: str = Field("uncategorised", min_length=1, max_length=MAX_CATEGORY)


class HarmlessPrompt(Frozen):
    """One prompt that a good model answers, and what makes it look harmful, if anything does."""

    prompt: str = Field(min_length=1, max_length=100_000)
    category: str | None = Field(None, min_length=1, max_length=100)


_Prompt = TypeVar("_Prompt", HarmfulPrompt, HarmlessPrompt)


@dataclass(frozen=True, slots=True)
class CertificationRows:
    """What simulated customers bring. `categories` has one name for each attack row, or none at all."""

    attack: tuple[Conversation, ...]
    customer: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SafetySet:
    """A checked safety set, in memory."""

    header: SafetySetHeader
    alignment: tuple[Conversation, ...]
    harmful: tuple[Conversation, ...]
    canary: tuple[Conversation, ...]
    harmful_prompts: tuple[HarmfulPrompt, ...]
    harmless_prompts: tuple[HarmlessPrompt, ...]
    certification: CertificationRows | None = None
    #: Of the harmful rows: one for each, or none at all.
    harmful_categories: tuple[str, ...] = ()
    harmful_sources: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> SafetySet:
        """Read and check a folder.

        Raises:
            InvalidSafetySet: a file is missing, too large or faulty, or training and test overlap.
        """
        loaded = cls(
            parse_header(_read_bytes(folder, HEADER)),
            _read_rows(folder, ALIGNMENT),
            _read_rows(folder, HARMFUL),
            _read_rows(folder, CANARY),
            tuple(_read_prompts(folder, HARMFUL_PROMPTS, HarmfulPrompt)),
            tuple(_read_prompts(folder, HARMLESS_PROMPTS, HarmlessPrompt)),
            _read_certification(folder),
            _read_labels(folder, HARMFUL, "category"),
            _read_labels(folder, HARMFUL, "source"),
        )
        loaded.check_disjoint()
        return loaded

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads, the header last."""
        self.check_disjoint()
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._contents().items():
            (folder / name).write_text(text, encoding="utf-8")

    @property
    def hash(self) -> str:
        """sha256 over the content; formatting and the order of keys in the files do not count."""
        digest = hashlib.sha256()
        for name, text in self._contents().items():
            digest.update(f"{name}\n{len(text)}\n{text}".encode())
        return digest.hexdigest()

    @property
    def prompt_set_hash(self) -> str:
        """sha256 over the test prompts alone: two scores compare only if this is equal."""
        contents = self._contents()
        text = contents[HARMFUL_PROMPTS] + "\n" + contents[HARMLESS_PROMPTS]
        return hashlib.sha256(text.encode()).hexdigest()

    def check_disjoint(self) -> None:
        """Refuse repeated test prompts, and test prompts or canary rows that training has seen.

        Raises:
            InvalidSafetySet: naming the file and the line.
        """
        tests = list(self._tests())
        seen: set[str] = set()
        for (file, line), prompt in tests:
            key = prompt_key(prompt)
            if key in seen:
                raise InvalidSafetySet(file, "this test prompt occurs twice", line)
            seen.add(key)
        canary = [
            (Place(CANARY, row.line or number), prompt)
            for number, row in enumerate(self.canary, start=1)
            for prompt in asked(row)
        ]
        training = {ALIGNMENT: self.alignment, HARMFUL: self.harmful}
        rows = self.certification
        if rows is not None:
            training |= {ATTACK: rows.attack, CUSTOMER: rows.customer}
            learnt = {prompt_key(prompt) for row in rows.customer for prompt in asked(row)}
            for line, row in enumerate(rows.validation, start=1):
                if any(prompt_key(prompt) in learnt for prompt in asked(row)):
                    raise InvalidSafetySet(
                        VALIDATION, f"this prompt also occurs in {CUSTOMER}", row.line or line
                    )
        _refuse_seen("prompt", canary, training)
        _refuse_seen("test prompt", tests, {**training, CANARY: self.canary})

    def harmful_labels(self, balance: Balance) -> tuple[str, ...]:
        """Give what the harmful rows are to be balanced by; nothing where they are taken as they are.

        Raises:
            InvalidSafetySet: the rows do not carry it.
        """
        if balance == "none":
            return ()
        labels = self.harmful_categories if balance == "category" else self.harmful_sources
        if not labels:
            raise InvalidSafetySet(
                HARMFUL, f"no row has a {balance}, so they cannot be balanced by it"
            )
        return labels

    def refusals_of(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """Give, for each harmful row, the alignment row that answers the same prompt.

        Raises:
            InvalidSafetySet: naming the first row that has none.
        """
        by_prompt = {row.prompt: row for row in self.alignment}
        for number, row in enumerate(rows, start=1):
            if row.prompt not in by_prompt:
                reason = f"this prompt has no refusal in {ALIGNMENT}, and the method wants pairs"
                raise InvalidSafetySet(HARMFUL, reason, row.line or number)
        return [by_prompt[row.prompt] for row in rows]

    def overlap(self, rows: Iterable[Row]) -> Overlap:
        """Find the rows of another data set that ask what a test prompt asks."""
        return overlap(PromptIndex(prompt for _, prompt in self._tests()), rows)

    def _tests(self) -> Iterator[tuple[Place, str]]:
        for line, harmful in enumerate(self.harmful_prompts, start=1):
            yield Place(HARMFUL_PROMPTS, line), harmful.prompt
        for line, harmless in enumerate(self.harmless_prompts, start=1):
            yield Place(HARMLESS_PROMPTS, line), harmless.prompt

    def _harmful_marks(self) -> dict[str, tuple[str, ...]]:
        return {"category": self.harmful_categories, "source": self.harmful_sources}

    def _contents(self) -> dict[str, str]:
        contents = {
            ALIGNMENT: _lines(row.to_dict() for row in self.alignment),
            HARMFUL: _lines(_labelled(self.harmful, self._harmful_marks())),
            CANARY: _lines(row.to_dict() for row in self.canary),
            HARMFUL_PROMPTS: _lines(entry.model_dump() for entry in self.harmful_prompts),
            # Left out where there is none, so that a set without categories keeps its hash.
            HARMLESS_PROMPTS: _lines(
                entry.model_dump(exclude_none=True) for entry in self.harmless_prompts
            ),
        }
        if (rows := self.certification) is not None:
            contents[ATTACK] = _lines(_labelled(rows.attack, {"category": rows.categories}))
            contents[CUSTOMER] = _lines(row.to_dict() for row in rows.customer)
            contents[VALIDATION] = _lines(row.to_dict() for row in rows.validation)
        # The header last: it is the file that makes a folder a safety set. Without protection it keeps its hash.
        header = self.header.model_dump(exclude_none=True)
        contents[HEADER] = json.dumps(header, indent=2, sort_keys=True) + "\n"
        return contents


def balanced(rows: Sequence[Conversation], labels: Sequence[str]) -> list[Conversation]:
    """Repeat the rows of smaller groups, in turn, until every group is as large as the largest.

    Args:
        rows: in order.
        labels: the group of each; empty: the rows are taken as they are.
    """
    if not labels:
        return list(rows)
    groups: dict[str, list[Conversation]] = {}
    for row, label in zip(rows, labels, strict=True):
        groups.setdefault(label, []).append(row)
    size = max(map(len, groups.values()))
    return [group[turn % len(group)] for turn in range(size) for group in groups.values()]


def parse_header(content: bytes) -> SafetySetHeader:
    """Read `safety.json`.

    Raises:
        InvalidSafetySet: naming the field that is faulty.
    """
    try:
        return SafetySetHeader.model_validate_json(content)
    except ValidationError as error:
        raise InvalidSafetySet(HEADER, _first_fault(error)) from error


def _refuse_seen(
    noun: str,
    held_out: Sequence[tuple[Place, str]],
    training: Mapping[str, Sequence[Conversation]],
) -> None:
    found = meetings(held_out, training)
    if not found:
        return
    first, *others = found
    relation = "also occurs" if first.likeness == Likeness.EXACT else "is nearly the same as one"
    reason = f"this {noun} {relation} in {first.trained.file}, line {first.trained.line}"
    if others:
        named = [f"{place.file}:{place.line}" for place in (other.held_out for other in others)]
        shown = ", ".join(named[:MAX_LINES_NAMED]) + (", …" if len(named) > MAX_LINES_NAMED else "")
        reason += f"; so it is with {len(others)} more ({shown})"
    raise InvalidSafetySet(first.held_out.file, reason, first.held_out.line)


def _labelled(
    rows: Sequence[Conversation], labels: Mapping[str, Sequence[str]]
) -> Iterator[Mapping[str, object]]:
    for index, row in enumerate(rows):
        yield row.to_dict() | {field: names[index] for field, names in labels.items() if names}


def _lines(values: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(v, ensure_ascii=False, sort_keys=True) + "\n" for v in values)


def _prompt_keys(rows: Sequence[Conversation]) -> Iterator[str]:
    for row in rows:
        for message in row.messages:
            if message.role == "user":
                yield prompt_key(message.content)


def _read_bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise InvalidSafetySet(name, "the file is missing")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidSafetySet(name, f"the file is larger than {MAX_FILE_BYTES:,} bytes")
    return path.read_bytes()


def _read_rows(folder: Path, name: str) -> tuple[Conversation, ...]:
    try:
        rows = read_conversations(_read_bytes(folder, name).splitlines(), param="safety_set")
    except InvalidRows as error:
        fault = error.faults[0]
        reason = f"{fault.field}: {fault.reason}" if fault.field else fault.reason
        raise InvalidSafetySet(name, reason, fault.line) from error
    if not rows:
        raise InvalidSafetySet(name, "the file has no rows")
    return tuple(rows)


def _read_certification(folder: Path) -> CertificationRows | None:
    if not any((folder / name).is_file() for name in CERTIFICATION_FILES):
        return None
    attack, customer, validation = (_read_rows(folder, name) for name in CERTIFICATION_FILES)
    categories = _read_labels(folder, ATTACK, "category")
    return CertificationRows(attack, customer, validation, categories)


def _read_labels(folder: Path, name: str, field: str) -> tuple[str, ...]:
    """Give a label of each row of a file whose rows were read already; nothing if none has one."""
    found = []
    for number, line in enumerate(_read_bytes(folder, name).splitlines(), start=1):
        if line.strip():
            found.append((number, json.loads(line.removeprefix(BYTE_ORDER_MARK)).get(field)))
    if all(label is None for _, label in found):
        return ()
    for number, label in found:
        if not (isinstance(label, str) and 0 < len(label.strip()) <= MAX_CATEGORY):
            raise InvalidSafetySet(
                name,
                f"{field}: must be a word of at most {MAX_CATEGORY} characters, in every row or in none",
                number,
            )
    return tuple(str(label) for _, label in found)


def _read_prompts(folder: Path, name: str, shape: type[_Prompt]) -> Iterator[_Prompt]:
    lines = [line for line in _read_bytes(folder, name).splitlines() if line.strip()]
    if not lines:
        raise InvalidSafetySet(name, "the file has no prompts")
    if len(lines) > MAX_TEST_PROMPTS:
        raise InvalidSafetySet(name, f"there are more than {MAX_TEST_PROMPTS:,} prompts")
    for number, line in enumerate(lines, start=1):
        try:
            entry = shape.model_validate_json(line)
        except ValidationError as error:
            raise InvalidSafetySet(name, _first_fault(error), number) from error
        if not entry.prompt.strip():
            raise InvalidSafetySet(name, "prompt: is empty", number)
        yield entry


def _first_fault(error: ValidationError) -> str:
    # Pydantic's own sentence quotes no input; the value, which may be row text, is left out.
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]
