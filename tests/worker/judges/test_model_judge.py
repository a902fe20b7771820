"""What holds for every judge that is a model: order, batches, lengths, identity, and no verdict on failure."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from models.judges import (
    BeaverDamSpec,
    ClassifierSpec,
    LlamaGuardSpec,
    ModelJudgeSpec,
    Qwen3GuardSpec,
    ShieldGemmaSpec,
    WildGuardSpec,
)
from tests.tiny_model import CHAT_TEMPLATE, PAD
from tests.worker.judges.tiny_judges import (
    FLAG,
    beaver_folder,
    gemma2,
    guard_folder,
    judge_tokenizer,
    mistral,
    qwen3,
    save_judge,
    write_verdicts,
)
from worker.judge import open_judge
from worker.judgement import Judge, JudgeError, Judgement
from worker.judges import loading
from worker.judges.model_judge import ModelJudge

# Each test loads models.
pytestmark = pytest.mark.long


def llama_guard(folder: Path) -> LlamaGuardSpec:
    return LlamaGuardSpec(source=str(guard_folder(folder, harmful="unsafe\nS9", safe="safe")))


def qwen3guard(folder: Path) -> Qwen3GuardSpec:
    guard_folder(
        folder,
        harmful="Safety: Unsafe\nCategories: Violent\nRefusal: No",
        safe="Safety: Safe\nCategories: None\nRefusal: Yes",
        family=qwen3,
    )
    return Qwen3GuardSpec(source=str(folder))


def wildguard(folder: Path) -> WildGuardSpec:
    guard_folder(
        folder,
        harmful="Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
        safe="Harmful request: yes\nResponse refusal: yes\nHarmful response: no",
        family=mistral,
        chat_template=None,
    )
    return WildGuardSpec(source=str(folder))


def shieldgemma(folder: Path) -> ShieldGemmaSpec:
    tokenizer = judge_tokenizer(("Yes", "No"), CHAT_TEMPLATE + "{{ guideline }}")
    model = gemma2(len(tokenizer))
    write_verdicts(model, tokenizer, "Yes", "No")
    return ShieldGemmaSpec(source=str(save_judge(folder, model, tokenizer)))


def beaver_dam(folder: Path) -> BeaverDamSpec:
    return BeaverDamSpec(source=str(beaver_folder(folder)))


def classifier(folder: Path) -> ClassifierSpec:
    beaver_folder(folder, labels=3, flagged_label=2)
    return ClassifierSpec(source=str(folder), harmful_labels=("LABEL_2",), multi_label=True)


@dataclass(frozen=True)
class Kind:
    """One kind of judge: how to make one, the category that it gives, whether it tells refusals."""

    make: Callable[[Path], ModelJudgeSpec]
    category: str | None
    tells_refusals: bool


KINDS = {
    "beaver-dam": Kind(beaver_dam, "violence,aiding_and_abetting,incitement", False),
    "llama-guard": Kind(llama_guard, "indiscriminate-weapons", False),
    "qwen3guard": Kind(qwen3guard, "violent", True),
    "wildguard": Kind(wildguard, None, True),
    "shieldgemma": Kind(shieldgemma, "dangerous-content", False),
    "classifier": Kind(classifier, "LABEL_2", False),
}

ANSWERS = [
    f"a rather long answer that at some place has a {FLAG} in it",
    "well",
    f"{FLAG}",
    "a middling answer without any",
    "",
    f"six {FLAG}s: {FLAG * 6}",
    "b",
]
PROMPTS = [f"question {i}" + i * "?" for i in range(len(ANSWERS))]
HARMFUL = [FLAG in answer for answer in ANSWERS]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def spec(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> ModelJudgeSpec:
    return kind.make(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def copy(kind: Kind, tmp_path: Path) -> ModelJudgeSpec:
    """One that a test may break."""
    return kind.make(tmp_path)


def with_options(spec: ModelJudgeSpec, **options: object) -> ModelJudgeSpec:
    return type(spec).model_validate({**spec.model_dump(), **options})


def judge_one(spec: ModelJudgeSpec, answer: str, prompt: str = "a question") -> Judgement:
    return open_judge(spec).judge([prompt], [answer])[0]


class TestJudging:
    def test_finds_harm_whatever_stands_around_it_in_the_batch(self, spec: ModelJudgeSpec) -> None:
        alone = [
            open_judge(spec).judge([prompt], [answer])[0]
            for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
        ]
        assert [judgement.is_harmful for judgement in alone] == HARMFUL
        for batch_size in (1, 2, 3, 16):
            judge = open_judge(with_options(spec, batch_size=batch_size))
            assert judge.judge(PROMPTS, ANSWERS) == alone

    def test_names_what_is_harmful(self, kind: Kind, spec: ModelJudgeSpec) -> None:
        assert judge_one(spec, f"so: {FLAG}") == Judgement(True, False, False, kind.category)

    def test_harm_goes_before_refusal_and_incoherence(self, spec: ModelJudgeSpec) -> None:
        found = judge_one(spec, f"I'm sorry sorry sorry sorry {FLAG}")
        assert (found.is_harmful, found.is_refusal, found.is_incoherent) == (True, False, False)

    def test_tells_refusals_itself_or_by_their_words(
        self, kind: Kind, spec: ModelJudgeSpec
    ) -> None:
        # The tiny guards that tell refusals call all that is harmless one.
        assert judge_one(spec, "Begin with a bucket.").is_refusal is kind.tells_refusals
        assert judge_one(spec, "I'm sorry, no.") == Judgement(False, True, False)

    def test_takes_the_refusal_phrases_of_the_safety_set(
        self, kind: Kind, spec: ModelJudgeSpec
    ) -> None:
        if not kind.tells_refusals:
            spec = with_options(spec, refusal_phrases=["nein"])
            assert judge_one(spec, "Nein!").is_refusal
            assert not judge_one(spec, "I'm sorry, no.").is_refusal

    @pytest.mark.parametrize("answer", ["", " \n", "go go go go"])
    def test_nonsense_is_incoherent_and_no_refusal(self, spec: ModelJudgeSpec, answer: str) -> None:
        assert judge_one(spec, answer) == Judgement(False, False, True)

    def test_an_empty_answer_is_not_harmful_whatever_was_asked(self, spec: ModelJudgeSpec) -> None:
        assert judge_one(spec, " ", prompt=f"a question with {FLAG}") == Judgement(
            False, False, True
        )

    def test_control_tokens_are_plain_text(self, spec: ModelJudgeSpec) -> None:
        # The tiny judges flag the pad token, but not its name.
        assert not judge_one(spec, f"so {PAD} it is", prompt=f"a {PAD} b").is_harmful

    def test_nothing_to_judge(self, spec: ModelJudgeSpec) -> None:
        assert open_judge(spec).judge([], []) == []


class TestLengths:
    def test_judges_no_more_of_an_answer_than_it_is_told(self, spec: ModelJudgeSpec) -> None:
        # One token a character.
        answer = "é" * 10 + "b" * 10 + FLAG + "rest"
        tokens = 2 * 10 + 10 + 1
        assert judge_one(with_options(spec, max_answer_tokens=tokens), answer).is_harmful
        assert not judge_one(with_options(spec, max_answer_tokens=tokens - 1), answer).is_harmful
        assert judge_one(spec, answer).is_harmful

    def test_a_control_token_in_an_answer_counts_as_the_text_that_it_is(
        self, spec: ModelJudgeSpec
    ) -> None:
        answer = "<end>" + FLAG
        assert judge_one(with_options(spec, max_answer_tokens=6), answer).is_harmful
        assert not judge_one(with_options(spec, max_answer_tokens=5), answer).is_harmful

    def test_what_is_too_long_is_not_judged_in_part(self, spec: ModelJudgeSpec) -> None:
        judge = open_judge(with_options(spec, max_length=1500))
        with pytest.raises(JudgeError, match=r"1 of 2 exchanges.*1500 tokens"):
            judge.judge(["a", "b"], ["short", "xy " * 600])
        assert len(judge.judge(["a", "b"], ["short", "xy " * 100])) == 2

    def test_the_model_may_read_less_than_the_safety_set_allows(self, spec: ModelJudgeSpec) -> None:
        with pytest.raises(JudgeError, match=r"1 of 1 exchanges.*2048 tokens"):
            judge_one(spec, "xy " * 700)

    def test_an_answer_without_a_prompt_is_an_error(self, spec: ModelJudgeSpec) -> None:
        with pytest.raises(JudgeError, match="1 prompts and 2 answers"):
            open_judge(spec).judge(["?"], ["a", "b"])


class TestIdentity:
    def test_says_kind_weights_and_options(self, spec: ModelJudgeSpec) -> None:
        identity = open_judge(spec).identity
        assert identity.name.startswith(spec.kind)
        weights, options = identity.revision.split("-")
        assert (len(weights), len(options)) == (12, 8)

    def test_options_change_it_and_batches_do_not(self, spec: ModelJudgeSpec) -> None:
        identity = open_judge(spec).identity
        assert open_judge(with_options(spec, batch_size=3)).identity == identity
        shorter = open_judge(with_options(spec, max_answer_tokens=256)).identity
        assert shorter.name == f"{identity.name}-first-256"
        assert shorter.revision.split("-")[0] == identity.revision.split("-")[0]
        assert shorter.revision != identity.revision

    def test_weights_and_templates_change_it(self, copy: ModelJudgeSpec) -> None:
        found = [open_judge(copy).identity.revision]
        change_weights(copy, lambda tensor: tensor + 1)
        found.append(reopened(copy).identity.revision)
        with (Path(copy.source) / "tokenizer_config.json").open("a") as file:
            file.write("\n")
        found.append(reopened(copy).identity.revision)
        assert len({revision.split("-")[0] for revision in found}) == 3
        assert len({revision.split("-")[1] for revision in found}) == 1


class TestMemory:
    def test_equal_specs_are_one_judge_and_one_source_one_model(self, spec: ModelJudgeSpec) -> None:
        judge = open_judge(spec)
        assert open_judge(with_options(spec)) is judge
        other = open_judge(with_options(spec, batch_size=5))
        assert other is not judge
        assert model_of(other) is model_of(judge)

    def test_close_gives_the_model_back_and_the_next_use_takes_it_again(
        self, copy: ModelJudgeSpec
    ) -> None:
        judge, sibling = open_judge(copy), open_judge(with_options(copy, batch_size=5))
        model = weakref.ref(model_of(judge))
        judge.close()
        assert model() is not None  # the sibling's
        sibling.close()
        assert model() is None
        assert open_judge(copy).judge(["a"], [f"so: {FLAG}"])[0].is_harmful


class TestFailures:
    """Each of them is a JudgeError, never a verdict, and none says what was judged."""

    SECRET = "secretword"

    def fails(self, spec: ModelJudgeSpec, match: str | None = None) -> None:
        with pytest.raises(JudgeError, match=match) as caught:
            open_judge(spec).judge([f"{self.SECRET} a"], [f"{self.SECRET} b"])
        error: BaseException | None = caught.value
        while error is not None:
            assert self.SECRET not in repr(error)
            error = error.__cause__ or error.__context__

    def test_weights_that_are_no_numbers(self, copy: ModelJudgeSpec) -> None:
        change_weights(copy, lambda tensor: tensor * math.nan)
        self.fails(copy)

    def test_no_folder(self, spec: ModelJudgeSpec, tmp_path: Path) -> None:
        self.fails(with_options(spec, source=str(tmp_path / "nowhere")), "cannot be read")

    def test_pickled_weights_alone(self, copy: ModelJudgeSpec) -> None:
        weights = Path(copy.source) / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
        self.fails(copy, "cannot be read")

    def test_torn_weights(self, copy: ModelJudgeSpec) -> None:
        weights = Path(copy.source) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.fails(copy, "cannot be read")

    def test_weights_without_their_head(self, copy: ModelJudgeSpec) -> None:
        # transformers would draw the head at random and say so in a warning.
        weights = Path(copy.source) / "model.safetensors"
        tensors = load_file(weights)
        for head in {"lm_head.weight", "score.weight"} & tensors.keys():
            del tensors[head]
        save_file(tensors, weights, {"format": "pt"})
        self.fails(copy, "incomplete")

    def test_no_tokenizer(self, copy: ModelJudgeSpec) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(copy.source) / name).unlink()
        self.fails(copy, "cannot be read")

    def test_a_model_that_breaks(
        self, spec: ModelJudgeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            model_of(reopened(spec)).base_model, "forward", raises(RuntimeError("CUDA error"))
        )
        self.fails(spec, "failed on a batch")

    def test_too_little_memory_for_one_exchange(
        self, spec: ModelJudgeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            model_of(reopened(spec)).base_model, "forward", raises(torch.OutOfMemoryError())
        )
        self.fails(spec, "alone does not fit")

    def test_too_little_memory_for_the_model(
        self, copy: ModelJudgeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "load_model", raises(torch.OutOfMemoryError()))
        self.fails(copy, "does not fit")


class TestMemoryRunsShort:
    def test_smaller_batches_give_the_same_judgements(
        self, spec: ModelJudgeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judge = open_judge(spec)
        expected = judge.judge(PROMPTS, ANSWERS)
        model = model_of(judge).base_model
        whole = model.forward
        sizes: list[int] = []

        def small(*args: object, input_ids: torch.Tensor | None = None, **kwargs: object) -> object:
            ids = args[0] if input_ids is None else input_ids
            assert isinstance(ids, torch.Tensor)
            sizes.append(len(ids))
            if len(ids) > 2:
                raise torch.OutOfMemoryError
            return whole(ids, *args[1:], **kwargs)

        monkeypatch.setattr(model, "forward", small)
        assert judge.judge(PROMPTS, ANSWERS) == expected
        assert max(sizes) > 2
        # The halves of the first batch, and none is larger after it.
        assert sizes == sorted(sizes, reverse=True)


def reopened(spec: ModelJudgeSpec) -> Judge:
    open_judge.cache_clear()
    return open_judge(spec)


def model_of(judge: Judge) -> PreTrainedModel:
    assert isinstance(judge, ModelJudge)
    assert judge._loaded is not None
    return judge._loaded[0].model


def change_weights(spec: ModelJudgeSpec, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = Path(spec.source) / "model.safetensors"
    save_file({k: change(v) for k, v in load_file(path).items()}, path, {"format": "pt"})


def raises(error: Exception) -> Callable[..., object]:
    def fail(*args: object, **kwargs: object) -> object:
        raise error

    return fail
