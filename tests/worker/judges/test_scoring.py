"""Judges that score: beaver-dam, ShieldGemma and any classifier, against their models' own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.judges import BeaverDamSpec, ClassifierSpec, Guideline, ShieldGemmaSpec
from tests.tiny_model import CHAT_TEMPLATE
from tests.worker.judges.tiny_judges import (
    FLAG,
    SIZES,
    beaver_folder,
    gemma2,
    judge_tokenizer,
    save_judge,
    write_verdicts,
)
from worker.judge import open_judge
from worker.judgement import JudgeError
from worker.judges.beaver_dam import CATEGORIES, REFERENCE_TOKENS
from worker.judges.model_judge import ModelJudge
from worker.judges.shieldgemma import GUIDELINES

PROMPTS = ["why?", "how does one do that", "w"]
ANSWERS = ["like so", "a", "one takes a bucket, and then another bucket"]


def random_classifier(labels: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Give a Llama with a head whose weights are large enough for its numbers to differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        **SIZES,
    )
    return LlamaForSequenceClassification(config).eval()


class TestBeaverDam:
    def wrapped(self, prompt: str, answer: str) -> str:
        return f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{answer}<end>"

    def test_flags_as_the_models_own_forward_does_on_the_papers_input(self, tmp_path: Path) -> None:
        tokenizer = judge_tokenizer()
        model = random_classifier(14, tokenizer)
        save_judge(tmp_path, model, tokenizer)
        texts = [self.wrapped(*pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs, token_type_ids=None).logits.sigmoid()  # (B, 14)
        highest = probabilities.max(dim=1)
        # A threshold between two of the answers, and close to both.
        low, high = sorted(highest.values.tolist())[:2]
        judge = open_judge(BeaverDamSpec(source=str(tmp_path), threshold=(low + high) / 2))
        judged = judge.judge(PROMPTS, ANSWERS)
        assert [j.is_harmful for j in judged] == [value > low for value in highest.values.tolist()]
        assert [j.category for j in judged if j.is_harmful] == [
            CATEGORIES[index]
            for value, index in zip(*(t.tolist() for t in highest), strict=True)
            if value > low
        ]

    def test_reads_the_last_token_even_if_it_is_the_pad_token(self, tmp_path: Path) -> None:
        beaver_folder(tmp_path)
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        tokenizer = judge_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        saved.config.pad_token_id = tokenizer.eos_token_id
        save_judge(tmp_path, saved, tokenizer)
        judged = open_judge(BeaverDamSpec(source=str(tmp_path))).judge(
            ["a", "a"], [FLAG, "longer than the other"]
        )
        assert [judgement.is_harmful for judgement in judged] == [True, False]

    def test_reference_reads_the_first_256_tokens_of_everything(self, tmp_path: Path) -> None:
        source = str(beaver_folder(tmp_path))
        whole = open_judge(BeaverDamSpec(source=source))
        reference = open_judge(BeaverDamSpec(source=source, reference=True))
        room = REFERENCE_TOKENS - len(self.wrapped("why?", "").removesuffix("<end>"))
        inside, outside = "ab" * 200, "ab" * 200
        inside = inside[: room - 1] + FLAG + inside
        outside = outside[:room] + FLAG + outside
        assert [j.is_harmful for j in whole.judge(["why?"] * 2, [inside, outside])] == [True, True]
        assert [j.is_harmful for j in reference.judge(["why?"] * 2, [inside, outside])] == [
            True,
            False,
        ]
        assert (whole.identity.name, reference.identity.name) == (
            "beaver-dam",
            "beaver-dam-reference",
        )

    def test_reference_reads_the_very_tokens_of_the_papers_code(self, tmp_path: Path) -> None:
        judge = open_judge(BeaverDamSpec(source=str(beaver_folder(tmp_path)), reference=True))
        assert isinstance(judge, ModelJudge)
        assert judge._loaded is not None
        model, method = judge._loaded
        for answer in ("short", "ab" * 300):
            papers = model.tokenizer(
                self.wrapped("why?", answer), truncation=True, max_length=REFERENCE_TOKENS
            )
            assert method.rows("why?", answer) == [papers["input_ids"]]

    def test_reference_judges_what_is_longer_than_the_model_reads(self, tmp_path: Path) -> None:
        spec = BeaverDamSpec(source=str(beaver_folder(tmp_path)), reference=True)
        assert not open_judge(spec).judge(["why?"], ["ab" * 2000])[0].is_harmful

    def test_a_head_of_another_size_is_no_beaver_dam(self, tmp_path: Path) -> None:
        spec = BeaverDamSpec(source=str(beaver_folder(tmp_path, labels=13, flagged_label=1)))
        with pytest.raises(JudgeError, match="14 categories"):
            open_judge(spec)


class TestShieldGemma:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tokenizer = judge_tokenizer(("Yes", "No"), CHAT_TEMPLATE + "{{ guideline }}")
        model = gemma2(len(tokenizer))
        write_verdicts(model, tokenizer, "Yes", "No")
        return save_judge(tmp_path, model, tokenizer)

    def test_asks_about_each_guideline_and_names_the_broken_one(self, folder: Path) -> None:
        quiet = Guideline(name="quiet", text="The chatbot shall be nice.")
        loud = Guideline(name="loud", text=f"The chatbot shall not say {FLAG}.")
        for guidelines, category in [((quiet, loud), "loud"), ((loud, quiet), "loud")]:
            spec = ShieldGemmaSpec(source=str(folder), guidelines=guidelines)
            (judged,) = open_judge(spec).judge(["a"], ["b"])
            assert (judged.is_harmful, judged.category) == (True, category)
        spec = ShieldGemmaSpec(source=str(folder), guidelines=(quiet,))
        assert not open_judge(spec).judge(["a"], ["b"])[0].is_harmful

    def test_has_the_four_guidelines_that_it_was_trained_on(self, folder: Path) -> None:
        assert [guideline.name for guideline in GUIDELINES] == [
            "dangerous-content",
            "harassment",
            "hate-speech",
            "sexually-explicit",
        ]
        own = open_judge(ShieldGemmaSpec(source=str(folder)))
        given = open_judge(ShieldGemmaSpec(source=str(folder), guidelines=GUIDELINES[:1]))
        assert own.identity != given.identity

    def test_the_probability_is_that_of_yes_against_no(self, tmp_path: Path) -> None:
        tokenizer = judge_tokenizer(("Yes", "No"), CHAT_TEMPLATE + "{{ guideline }}")
        torch.manual_seed(1)
        model = gemma2(len(tokenizer)).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
        save_judge(tmp_path, model, tokenizer)
        rule = Guideline(name="rule", text="The chatbot shall be nice.")
        yes = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            shown = f"<user>{prompt}<end><assistant>{answer}<end>{rule.text}"
            ids = tokenizer(shown, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(ids).logits[0, -1]
            yes.append(logits[tokenizer.convert_tokens_to_ids(["Yes", "No"])].softmax(0)[0].item())
        assert len(set(yes)) == len(yes)
        for value in yes:
            for threshold, expected in ((value - 1e-4, True), (value + 1e-4, False)):
                spec = ShieldGemmaSpec(
                    source=str(tmp_path), guidelines=(rule,), threshold=threshold
                )
                judged = open_judge(spec).judge(PROMPTS, ANSWERS)
                assert judged[yes.index(value)].is_harmful is expected

    def test_a_model_without_the_two_words_is_no_judge(self, tmp_path: Path) -> None:
        tokenizer = judge_tokenizer(("Yes",), CHAT_TEMPLATE + "{{ guideline }}")
        save_judge(tmp_path, gemma2(len(tokenizer)), tokenizer)
        with pytest.raises(JudgeError, match="no token for Yes or none for No"):
            open_judge(ShieldGemmaSpec(source=str(tmp_path)))


class TestClassifier:
    def spec(self, folder: Path, *labels: str, **options: object) -> ClassifierSpec:
        return ClassifierSpec.model_validate(
            {"source": str(folder), "harmful_labels": labels, **options}
        )

    def probabilities(self, folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            return model(**inputs).logits

    def test_single_label_adds_the_shares_of_the_harmful_labels(self, tmp_path: Path) -> None:
        tokenizer = judge_tokenizer()
        save_judge(tmp_path, random_classifier(4, tokenizer), tokenizer)
        inputs = tokenizer(ANSWERS[:1], return_tensors="pt", return_token_type_ids=False)
        shares = self.probabilities(tmp_path, inputs).softmax(dim=1)[0]
        together = (shares[1] + shares[3]).item()
        for threshold, expected in ((together - 1e-4, True), (together + 1e-4, False)):
            spec = self.spec(tmp_path, "LABEL_1", "LABEL_3", threshold=threshold)
            (judged,) = open_judge(spec).judge(["a"], ANSWERS[:1])
            assert judged.is_harmful is expected
            if expected:
                assert judged.category == ("LABEL_1" if shares[1] > shares[3] else "LABEL_3")

    def test_multi_label_takes_the_highest_of_the_harmful_labels(self, tmp_path: Path) -> None:
        beaver_folder(tmp_path, labels=3, flagged_label=1)
        harmful = self.spec(tmp_path, "LABEL_0", "LABEL_1", multi_label=True)
        harmless = self.spec(tmp_path, "LABEL_0", "LABEL_2", multi_label=True)
        (judged,) = open_judge(harmful).judge(["a"], [FLAG])
        assert (judged.is_harmful, judged.category) == (True, "LABEL_1")
        assert not open_judge(harmless).judge(["a"], [FLAG])[0].is_harmful

    @pytest.mark.parametrize(("reads", "seen"), [("answer", False), ("pair", True), ("chat", True)])
    def test_reads_what_it_is_told(self, tmp_path: Path, reads: str, seen: bool) -> None:
        beaver_folder(tmp_path, labels=2, flagged_label=1)
        spec = self.spec(tmp_path, "LABEL_1", multi_label=True, reads=reads)
        judged = open_judge(spec).judge([f"a {FLAG}", "a", "a"], ["b", "b", f"b {FLAG}"])
        assert [judgement.is_harmful for judgement in judged] == [seen, False, True]

    def test_a_model_that_names_no_pad_token_is_read_in_batches_too(self, tmp_path: Path) -> None:
        beaver_folder(tmp_path, labels=2, flagged_label=1)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        model.config.pad_token_id = None
        save_judge(tmp_path, model, judge_tokenizer())
        judge = open_judge(self.spec(tmp_path, "LABEL_1", multi_label=True))
        judged = judge.judge(["a"] * 3, ["a", f"longer {FLAG}", "the longest of the three"])
        assert [judgement.is_harmful for judgement in judged] == [False, True, False]

    def test_encoders_get_their_segments(self, tmp_path: Path) -> None:
        tokenizer = judge_tokenizer()
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<end> $A <end>",
            pair="<end> $A <end> $B:1 <end>:1",
            special_tokens=[("<end>", end)],
        )
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=pad,
            initializer_range=0.5,
        )
        save_judge(tmp_path, BertForSequenceClassification(config), tokenizer)
        inputs = tokenizer(PROMPTS, ANSWERS, padding=True, return_tensors="pt")
        assert inputs["token_type_ids"].max() == 1
        shares = self.probabilities(tmp_path, inputs).softmax(dim=1)[:, 1].tolist()
        assert len(set(shares)) == 3
        threshold = sorted(shares)[1] - 1e-4
        spec = self.spec(tmp_path, "LABEL_1", reads="pair", threshold=threshold)
        judged = open_judge(spec).judge(PROMPTS, ANSWERS)
        assert [j.is_harmful for j in judged] == [share > threshold for share in shares]
        # 64 places: what an encoder cannot place it cannot judge.
        with pytest.raises(JudgeError, match="64 tokens"):
            open_judge(spec).judge(["a"], ["b" * 64])

    def test_an_unknown_label_makes_no_judge(self, tmp_path: Path) -> None:
        beaver_folder(tmp_path, labels=2, flagged_label=1)
        with pytest.raises(JudgeError, match="lacks a label"):
            open_judge(self.spec(tmp_path, "toxic"))

    def test_a_chat_template_that_is_not_there_makes_no_judge(self, tmp_path: Path) -> None:
        beaver_folder(tmp_path, labels=2, flagged_label=1)
        (tmp_path / "chat_template.jinja").unlink()
        with pytest.raises(JudgeError, match="no chat template"):
            open_judge(self.spec(tmp_path, "LABEL_1", reads="chat"))
