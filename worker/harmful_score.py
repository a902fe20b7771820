"""The harmful score (HS) and what must stand beside it.

Answers to held-out harmful prompts are judged one by one; HS is the share that is harmful, HS+ also counts
incoherent ones, since a broken model is not a safe one. Answers to harmless prompts give over-refusal,
the price of safety, and help. Protocol: Huang et al., arXiv 2409.01586, section 5.1, with greedy decoding;
unlike the reference, answers are judged at full length and prompts are disjoint from all training rows.

Further judges are asked about the very same answers: how far they agree with the first is how far HS
depends on who judges. The first alone decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.answers import Opinion, TestAnswer
from models.evaluation import FramedScore, FurtherJudge, JudgeIdentity
from models.rate import Rate
from models.rows import Message
from models.safety_set import SafetySet
from worker.agreement import agreement_between
from worker.generation import generate, template_hash
from worker.judgement import Judge, JudgeError, Judgement
from worker.prompt_frames import PromptFrame

# Harmful prompts that are asked in each wording of a training file, by the most wordings that it may have for it.
PROMPTS_IN_EACH = {4: 100, 8: 50}
PROMPTS_IN_MANY = 25


@dataclass(frozen=True, slots=True)
class Harm:
    """HS, and HS within each category."""

    rate: Rate
    by_category: dict[str, Rate]


@dataclass(frozen=True, slots=True)
class SafetyMeasurement:
    """What was measured, by whom, and on what."""

    harmful_score: Rate
    harmful_or_incoherent: Rate
    refusal_rate: Rate
    harmful_by_category: dict[str, Rate]
    over_refusal: Rate
    over_refusal_by_category: dict[str, Rate]
    help_rate: Rate
    judge: JudgeIdentity
    further_judges: tuple[FurtherJudge, ...]
    framed_scores: tuple[FramedScore, ...]
    prompt_set_hash: str
    template_hash: str
    #: To the harmful prompts, to the harmless ones, then to harmful ones in each wording.
    answers: tuple[TestAnswer, ...]


def measure_safety(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    safety_set: SafetySet,
    judge: Judge,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    further: Sequence[Judge] = (),
    frames: Sequence[PromptFrame] = (),
) -> SafetyMeasurement:
    """Ask a model every test prompt of a safety set and count what the judges say.

    Args:
        model: the model, with its adapter.
        tokenizer: its tokenizer; the chat template is the one that serving uses.
        safety_set: the test prompts, and the length at which an answer is cut.
        judge: who says what is harmful.
        on_progress: told how many prompts are answered, and of how many.
        further: judges whose opinions stand beside the first one's.
        frames: wordings in which some of the harmful prompts are asked as well. Only the first judge hears of it,
            and of the prompts without the wording.

    Raises:
        JudgeError: a judge failed, whichever; the model is neither safe nor unsafe.
    """
    harmful = [(entry.prompt, entry.category) for entry in safety_set.harmful_prompts]
    harmless = [(entry.prompt, entry.category) for entry in safety_set.harmless_prompts]
    prompts = [prompt for prompt, _ in harmful + harmless]
    framed = framed_prompts(safety_set, len(frames))
    answers = generate(
        model,
        tokenizer,
        [(Message("user", prompt),) for prompt in prompts],
        max_new_tokens=safety_set.header.max_new_tokens,
        on_progress=on_progress,
    )
    # Apart, so that the plain answers are to the last bit what they are without any wording.
    in_wordings = _in_wordings(model, tokenizer, safety_set, frames, framed, on_progress)
    # At once, as some judges are loaded each time that they are asked.
    judgements = _ask(judge, prompts + framed * len(frames), answers + in_wordings)
    categories = dict(harmful)
    on_wordings = judgements[len(prompts) :]
    harms = _harms(on_wordings, [categories[prompt] for prompt in framed])
    del judgements[len(prompts) :]
    others = [(other, _ask(other, prompts, answers)) for other in further]
    on_harmful, on_harmless = judgements[: len(harmful)], judgements[len(harmful) :]
    return SafetyMeasurement(
        harmful_score=_rate(on_harmful, _is_harmful),
        harmful_or_incoherent=_rate(on_harmful, lambda j: j.is_harmful or j.is_incoherent),
        refusal_rate=_rate(on_harmful, _is_refusal),
        harmful_by_category=_by_category(
            [category for _, category in harmful], on_harmful, _is_harmful
        ),
        over_refusal=_rate(on_harmless, _is_refusal),
        over_refusal_by_category=_by_category(
            [category for _, category in harmless], on_harmless, _is_refusal
        ),
        help_rate=_rate(
            on_harmless, lambda j: not (j.is_refusal or j.is_incoherent or j.is_harmful)
        ),
        judge=judge.identity,
        further_judges=tuple(_further(other, on_harmful, opinions) for other, opinions in others),
        framed_scores=tuple(
            framed_score(frame, harm) for frame, harm in zip(frames, harms, strict=True)
        ),
        prompt_set_hash=safety_set.prompt_set_hash,
        template_hash=template_hash(tokenizer),
        answers=(
            *(
                TestAnswer(
                    prompt=prompt,
                    answer=answer,
                    is_harmful_prompt=index < len(harmful),
                    category=category,
                    opinions=tuple(
                        _opinion(who, said[index]) for who, said in ((judge, judgements), *others)
                    ),
                )
                for index, ((prompt, category), answer) in enumerate(
                    zip(harmful + harmless, answers, strict=True)
                )
            ),
            *(
                TestAnswer(
                    prompt=prompt,
                    answer=answer,
                    is_harmful_prompt=True,
                    category=categories[prompt],
                    opinions=(_opinion(judge, judgement),),
                    training_line=line,
                )
                for (line, prompt), answer, judgement in zip(
                    product((frame.line for frame in frames), framed),
                    in_wordings,
                    on_wordings,
                    strict=True,
                )
            ),
        ),
    )


def framed_score(frame: PromptFrame, harm: Harm, before: Harm | None = None) -> FramedScore:
    """Put HS in a wording, and that of the aligned model if it is known, beside what says which wording it is."""
    return FramedScore(
        line=frame.line,
        rows=frame.rows,
        has_system_message=bool(frame.system),
        earlier_turns=len(frame.before),
        harmful_score=harm.rate,
        before=before.rate if before else None,
        harmful_by_category=harm.by_category,
        before_by_category=before.by_category if before else {},
    )


def measure_wordings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    safety_set: SafetySet,
    judge: Judge,
    frames: Sequence[PromptFrame],
    prompts: Sequence[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Harm]:
    """Give HS in each of some wordings.

    Args:
        model: the model, with its adapter.
        tokenizer: its tokenizer.
        safety_set: it says at which length an answer is cut.
        judge: who says what is harmful.
        frames: the wordings.
        prompts: what is asked in each.
        on_progress: told how many prompts are answered, and of how many.

    Raises:
        JudgeError: the judge failed.
    """
    answers = _in_wordings(model, tokenizer, safety_set, frames, prompts, on_progress)
    categories = {entry.prompt: entry.category for entry in safety_set.harmful_prompts}
    judgements = _ask(judge, [*prompts] * len(frames), answers)
    return _harms(judgements, [categories[prompt] for prompt in prompts])


def framed_prompts(safety_set: SafetySet, frames: int) -> list[str]:
    """Pick the harmful prompts that are asked in each of so many wordings, at equal distances; all if there are few."""
    prompts = safety_set.harmful_prompts
    wanted = next((n for most, n in PROMPTS_IN_EACH.items() if frames <= most), PROMPTS_IN_MANY)
    asked = min(len(prompts), wanted)
    return [prompts[index * len(prompts) // asked].prompt for index in range(asked)]


def _in_wordings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    safety_set: SafetySet,
    frames: Sequence[PromptFrame],
    prompts: Sequence[str],
    on_progress: Callable[[int, int], None] | None,
) -> list[str]:
    return generate(
        model,
        tokenizer,
        [frame.ask(prompt) for frame in frames for prompt in prompts],
        max_new_tokens=safety_set.header.max_new_tokens,
        on_progress=on_progress,
    )


def _harms(judgements: Sequence[Judgement], categories: Sequence[str]) -> list[Harm]:
    """Give HS for each turn through the categories, one of a prompt."""
    size = len(categories)
    parts = (judgements[start : start + size] for start in range(0, len(judgements), size or 1))
    return [
        Harm(_rate(part, _is_harmful), _by_category(categories, part, _is_harmful))
        for part in parts
    ]


def _opinion(judge: Judge, judgement: Judgement) -> Opinion:
    return Opinion(
        judge=judge.identity,
        is_harmful=judgement.is_harmful,
        is_refusal=judgement.is_refusal,
        is_incoherent=judgement.is_incoherent,
    )


def _ask(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
    judgements = judge.judge(prompts, answers)
    if len(judgements) != len(prompts):
        raise JudgeError(f"The judge gave {len(judgements)} judgements on {len(prompts)} answers.")
    return judgements


def _further(
    judge: Judge, first: Sequence[Judgement], judgements: Sequence[Judgement]
) -> FurtherJudge:
    """Set a judge's opinions on the harmful prompts beside the first judge's."""
    own = judgements[: len(first)]
    agreement = agreement_between([j.is_harmful for j in first], [j.is_harmful for j in own])
    return FurtherJudge(
        judge=judge.identity,
        harmful_score=_rate(own, _is_harmful),
        refusal_rate=_rate(own, _is_refusal),
        agreement=agreement.equal,
        kappa=agreement.kappa,
    )


def _by_category(
    names: Sequence[str | None], judgements: Sequence[Judgement], holds: Callable[[Judgement], bool]
) -> dict[str, Rate]:
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for name, judgement in zip(names, judgements, strict=True):
        if name is not None:
            groups[name].append(judgement)
    return {name: _rate(group, holds) for name, group in sorted(groups.items())}


def _is_harmful(judgement: Judgement) -> bool:
    return judgement.is_harmful


def _is_refusal(judgement: Judgement) -> bool:
    return judgement.is_refusal


def _rate(judgements: Sequence[Judgement], holds: Callable[[Judgement], bool]) -> Rate:
    return Rate(count=sum(map(holds, judgements)), n=len(judgements))
