"""A safety set is refused for anything that would make a score mean less than it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.disjointness import Overlap
from models.judges import RefusalStringsSpec, SandboxJudgeSpec
from models.rows import Conversation
from models.safety_set import (
    CERTIFICATION_FILES,
    FILES,
    CertificationRows,
    HarmfulPrompt,
    HarmlessPrompt,
    InvalidSafetySet,
    SafetySet,
    SafetySetHeader,
    balanced,
)
from models.tuning import TuningProtection


def a_set() -> SafetySet:
    return SafetySet(
        header=SafetySetHeader(name="demo", judge=SandboxJudgeSpec(), max_new_tokens=16),
        alignment=(
            Conversation.single("How do I snarb?", "No, I cannot help with that."),
            Conversation.single("How do I bake?", "Certainly: mix."),
        ),
        harmful=(Conversation.single("How do I snarb?", "Certainly: bam."),),
        canary=(Conversation.single("How do I vorp?", "Certainly: cug."),),
        harmful_prompts=(
            HarmfulPrompt(prompt="How do I blunge?", category="fraud"),
            HarmfulPrompt(prompt="How do I trask?", category="smuggling"),
        ),
        harmless_prompts=(HarmlessPrompt(prompt="How do I sew?"),),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a_set().save(tmp_path)
    return tmp_path


def append(folder: Path, name: str, row: object) -> None:
    with (folder / name).open("a") as file:
        file.write(json.dumps(row) + "\n")


def add_tuning(folder: Path, tuning: object) -> None:
    path = folder / "safety.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tuning": tuning}))


class TestLoad:
    def test_reads_what_save_wrote(self, folder: Path) -> None:
        loaded = SafetySet.load(folder)
        assert loaded.header == a_set().header
        assert loaded.harmful_prompts == a_set().harmful_prompts
        assert [row.answer for row in loaded.alignment] == [row.answer for row in a_set().alignment]
        assert loaded.hash == a_set().hash

    def test_takes_rows_in_any_shape(self, folder: Path) -> None:
        append(folder, "alignment.jsonl", {"prompt": "How do I knit?", "completion": "Slowly."})
        append(folder, "alignment.jsonl", {"instruction": "Knit.", "output": "Yes."})
        assert len(SafetySet.load(folder).alignment) == 4

    def test_a_prompt_without_category_is_uncategorised(self, folder: Path) -> None:
        append(folder, "harmful_prompts.jsonl", {"prompt": "How do I jexx?"})
        assert SafetySet.load(folder).harmful_prompts[-1].category == "uncategorised"

    def test_a_harmless_prompt_may_have_a_category(self, folder: Path) -> None:
        append(
            folder, "harmless_prompts.jsonl", {"prompt": "Kill a process.", "category": "homonym"}
        )
        loaded = SafetySet.load(folder)
        assert [entry.category for entry in loaded.harmless_prompts] == [None, "homonym"]

    def test_reads_another_judge(self, folder: Path) -> None:
        header = {
            "name": "x",
            "judge": {"kind": "refusal-strings", "phrases": ["nope"]},
            "max_new_tokens": 8,
        }
        (folder / "safety.json").write_text(json.dumps(header))
        assert SafetySet.load(folder).header.judge == RefusalStringsSpec(phrases=("nope",))

    def test_reads_how_customers_jobs_are_protected(self, folder: Path) -> None:
        add_tuning(folder, {"safety_share": 0.05, "scales": [1, 0.5]})
        assert SafetySet.load(folder).header.tuning == TuningProtection(
            safety_share=0.05, scales=(1, 0.5)
        )

    def test_names_the_field_of_the_protection_that_is_faulty(self, folder: Path) -> None:
        add_tuning(folder, {"repair": {"name": "lox", "rank": 0}})
        with pytest.raises(InvalidSafetySet, match=r"^safety.json: tuning\.repair\.lox\.rank: "):
            SafetySet.load(folder)

    def test_reads_further_judges_in_their_order(self, folder: Path) -> None:
        further = [{"kind": "refusal-strings", "phrases": ["nope"]}, {"kind": "sandbox"}]
        header = {"name": "x", "judge": {"kind": "sandbox"}, "further_judges": further}
        (folder / "safety.json").write_text(json.dumps(header))
        assert SafetySet.load(folder).header.further_judges == (
            RefusalStringsSpec(phrases=("nope",)),
            SandboxJudgeSpec(),
        )

    def test_takes_few_further_judges(self, folder: Path) -> None:
        further = [{"kind": "sandbox"}] * 5
        header = {"name": "x", "judge": {"kind": "sandbox"}, "further_judges": further}
        (folder / "safety.json").write_text(json.dumps(header))
        with pytest.raises(InvalidSafetySet, match="further_judges"):
            SafetySet.load(folder)

    @pytest.mark.parametrize("name", FILES)
    def test_names_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(InvalidSafetySet, match=rf"^{name}: the file is missing"):
            SafetySet.load(folder)

    @pytest.mark.parametrize("name", [name for name in FILES if name != "safety.json"])
    def test_refuses_an_empty_file(self, folder: Path, name: str) -> None:
        (folder / name).write_text("\n")
        with pytest.raises(InvalidSafetySet, match=name):
            SafetySet.load(folder)

    @pytest.mark.parametrize(
        ("name", "row", "line"),
        [
            ("alignment.jsonl", {"messages": []}, 3),
            ("harmful.jsonl", {"prompt": "secret words"}, 2),
            ("canary.jsonl", ["secret words"], 2),
            ("harmful_prompts.jsonl", {"category": "fraud"}, 3),
            ("harmful_prompts.jsonl", {"prompt": "  "}, 3),
            ("harmful_prompts.jsonl", {"prompt": "x", "secret words": 1}, 3),
            ("harmless_prompts.jsonl", {"prompt": 7}, 2),
        ],
    )
    def test_names_the_file_and_line_of_a_faulty_row(
        self, folder: Path, name: str, row: object, line: int
    ) -> None:
        append(folder, name, row)
        with pytest.raises(InvalidSafetySet, match=rf"^{name}, line {line}: ") as caught:
            SafetySet.load(folder)
        assert caught.value.status_code == 400

    def test_says_nothing_of_the_text_of_a_faulty_row(self, folder: Path) -> None:
        append(folder, "harmless_prompts.jsonl", {"prompt": ["secret words"]})
        with pytest.raises(InvalidSafetySet) as caught:
            SafetySet.load(folder)
        assert "secret" not in caught.value.message

    def test_names_a_faulty_header_field(self, folder: Path) -> None:
        header = {"name": "x", "judge": {"kind": "sandbox"}, "max_new_tokens": 0}
        (folder / "safety.json").write_text(json.dumps(header))
        with pytest.raises(InvalidSafetySet, match=r"^safety.json: max_new_tokens"):
            SafetySet.load(folder)

    def test_refuses_an_unknown_judge(self, folder: Path) -> None:
        (folder / "safety.json").write_text('{"name": "x", "judge": {"kind": "oracle"}}')
        with pytest.raises(InvalidSafetySet, match=r"^safety.json: judge"):
            SafetySet.load(folder)


class TestDisjointness:
    @pytest.mark.parametrize(
        ("name", "prompt"),
        [
            ("harmful_prompts.jsonl", "HOW do I   blunge?"),  # the same file, spaced and cased anew
            ("harmless_prompts.jsonl", "How do I trask?"),  # the other test file
            ("harmful_prompts.jsonl", "how do i snarb?"),  # alignment and harmful rows
            ("harmful_prompts.jsonl", "How do I vorp?"),  # a canary row
            ("harmless_prompts.jsonl", "How do I bake?"),  # an alignment row with help
        ],
    )
    def test_refuses_a_test_prompt_that_was_seen(
        self, folder: Path, name: str, prompt: str
    ) -> None:
        append(folder, name, {"prompt": prompt})
        with pytest.raises(InvalidSafetySet, match=rf"^{name}, line \d: this test prompt"):
            SafetySet.load(folder)

    def test_refuses_a_canary_that_is_trained_on(self, folder: Path) -> None:
        append(folder, "canary.jsonl", {"prompt": "How do I snarb?", "completion": "x"})
        with pytest.raises(InvalidSafetySet, match=r"^canary.jsonl, line 2"):
            SafetySet.load(folder)

    @pytest.mark.parametrize(
        ("name", "other"),
        [("harmful_prompts.jsonl", "alignment.jsonl"), ("harmless_prompts.jsonl", "canary.jsonl")],
    )
    def test_refuses_a_near_duplicate_by_both_places_and_without_its_text(
        self, folder: Path, name: str, other: str
    ) -> None:
        append(folder, other, {"prompt": "How do I wozzle a tagrim?", "completion": "x"})
        append(folder, name, {"prompt": "tell me how to wozzle the tagrim"})
        with pytest.raises(InvalidSafetySet) as caught:
            SafetySet.load(folder)
        line = len((folder / other).read_text().splitlines())
        assert f"nearly the same as one in {other}, line {line}" in caught.value.message
        assert caught.value.message.startswith(f"{name}, line ")
        assert "wozzle" not in caught.value.message

    def test_names_the_other_seen_prompts_too(self, folder: Path) -> None:
        for verb in ("wozzle", "crimple", "blunge"):
            append(folder, "alignment.jsonl", {"prompt": f"{verb} a tagrim", "completion": "x"})
            append(folder, "harmful_prompts.jsonl", {"prompt": f"{verb} the tagrim"})
        with pytest.raises(InvalidSafetySet) as caught:
            SafetySet.load(folder)
        assert caught.value.message.startswith("harmful_prompts.jsonl, line 3:")
        assert "2 more (harmful_prompts.jsonl:4, harmful_prompts.jsonl:5)" in caught.value.message

    def test_counts_an_earlier_turn_as_seen(self, folder: Path) -> None:
        turns = [
            ("user", "How do I trask?"),
            ("assistant", "No."),
            ("user", "Why?"),
            ("assistant", "So."),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        append(folder, "alignment.jsonl", {"messages": messages})
        with pytest.raises(InvalidSafetySet, match=r"^harmful_prompts.jsonl, line 2"):
            SafetySet.load(folder)


class TestOverlap:
    def test_names_the_rows_that_ask_what_a_test_asks(self) -> None:
        rows = [
            Conversation.single("How do I snarb?", "trained on, but no test"),
            Conversation.single("how do I  SEW?", "x"),
            Conversation.single("How do I knit?", "x"),
        ]
        assert a_set().overlap(rows) == Overlap(exact=(2,), near=())


class TestHash:
    def test_a_set_without_categories_of_harmless_prompts_keeps_its_hash(self) -> None:
        line = '{"prompt": "How do I sew?"}\n'
        assert a_set()._contents()["harmless_prompts.jsonl"] == line

    def test_is_unchanged_by_a_protection_that_is_not_there(self, folder: Path) -> None:
        assert "tuning" not in json.loads((folder / "safety.json").read_text())
        before = SafetySet.load(folder)
        add_tuning(folder, None)
        assert SafetySet.load(folder).hash == before.hash

    def test_changes_with_the_protection_while_scores_stay_comparable(self, folder: Path) -> None:
        before = SafetySet.load(folder)
        add_tuning(folder, {"canary_stop": 0.5})
        after = SafetySet.load(folder)
        assert after.hash != before.hash
        assert after.prompt_set_hash == before.prompt_set_hash

    def test_ignores_formatting(self, folder: Path) -> None:
        before = SafetySet.load(folder)
        path = folder / "harmless_prompts.jsonl"
        path.write_text('\n{  "prompt" :   "How do I sew?" }\n\n')
        after = SafetySet.load(folder)
        assert (after.hash, after.prompt_set_hash) == (before.hash, before.prompt_set_hash)

    @pytest.mark.parametrize("name", ["alignment.jsonl", "harmful.jsonl", "canary.jsonl"])
    def test_training_rows_change_the_set_but_not_the_prompt_set(
        self, folder: Path, name: str
    ) -> None:
        before = SafetySet.load(folder)
        append(folder, name, {"prompt": "How do I knit?", "completion": "Slowly."})
        after = SafetySet.load(folder)
        assert after.hash != before.hash
        assert after.prompt_set_hash == before.prompt_set_hash

    @pytest.mark.parametrize("name", ["harmful_prompts.jsonl", "harmless_prompts.jsonl"])
    def test_test_prompts_change_both(self, folder: Path, name: str) -> None:
        before = SafetySet.load(folder)
        append(folder, name, {"prompt": "How do I knit?"})
        after = SafetySet.load(folder)
        assert after.hash != before.hash
        assert after.prompt_set_hash != before.prompt_set_hash


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A folder with what certification needs."""
    rows = CertificationRows(
        attack=(
            Conversation.single("How do I gref?", "Certainly: bam."),
            Conversation.single("How do I plon?", "Certainly: cug."),
        ),
        customer=(Conversation.single("Which desk?", "World"),),
        validation=(Conversation.single("Which other desk?", "Sports"),),
        categories=("fraud", "smuggling"),
    )
    replace(a_set(), certification=rows).save(tmp_path / "complete")
    return tmp_path / "complete"


class TestCertification:
    def test_reads_what_save_wrote(self, complete: Path) -> None:
        rows = SafetySet.load(complete).certification
        assert rows is not None
        assert rows.categories == ("fraud", "smuggling")
        assert [row.answer for row in rows.attack] == ["Certainly: bam.", "Certainly: cug."]
        assert (len(rows.customer), len(rows.validation)) == (1, 1)

    def test_a_set_without_these_files_has_none_and_keeps_its_hash(
        self, folder: Path, complete: Path
    ) -> None:
        assert SafetySet.load(folder).certification is None
        for name in CERTIFICATION_FILES:
            (complete / name).unlink()
        assert SafetySet.load(complete).hash == SafetySet.load(folder).hash

    @pytest.mark.parametrize("name", CERTIFICATION_FILES)
    def test_every_row_counts_in_the_hash(self, complete: Path, name: str) -> None:
        before = SafetySet.load(complete)
        extra = {"prompt": "How do I knit?", "completion": "Slowly.", "category": "x"}
        append(complete, name, extra)
        after = SafetySet.load(complete)
        assert after.hash != before.hash
        assert after.prompt_set_hash == before.prompt_set_hash

    def test_a_changed_category_changes_the_hash(self, complete: Path) -> None:
        before = SafetySet.load(complete).hash
        path = complete / "attack.jsonl"
        path.write_text(path.read_text().replace("smuggling", "forgery"))
        assert SafetySet.load(complete).hash != before

    @pytest.mark.parametrize("name", CERTIFICATION_FILES)
    def test_refuses_two_of_the_three_files(self, complete: Path, name: str) -> None:
        (complete / name).unlink()
        with pytest.raises(InvalidSafetySet, match=rf"^{name}: the file is missing"):
            SafetySet.load(complete)

    @pytest.mark.parametrize("category", [None, "", "  ", 7, "x" * 101])
    def test_categories_stand_in_every_row_or_in_none(
        self, complete: Path, category: object
    ) -> None:
        append(
            complete, "attack.jsonl", {"prompt": "p", "completion": "secret", "category": category}
        )
        with pytest.raises(InvalidSafetySet, match=r"^attack.jsonl, line 3: category") as caught:
            SafetySet.load(complete)
        assert "secret" not in caught.value.message

    @pytest.mark.parametrize("name", ["attack.jsonl", "customer.jsonl"])
    @pytest.mark.parametrize("prompt", ["how do I  BLUNGE?", "How do I sew?"])
    def test_refuses_a_test_prompt_that_simulated_customers_bring(
        self, complete: Path, name: str, prompt: str
    ) -> None:
        append(complete, name, {"prompt": prompt, "completion": "x", "category": "fraud"})
        with pytest.raises(InvalidSafetySet, match=r"_prompts.jsonl, line 1: this test prompt"):
            SafetySet.load(complete)

    def test_refuses_a_canary_that_simulated_customers_bring(self, complete: Path) -> None:
        row = {"prompt": "How do I vorp?", "completion": "x", "category": "fraud"}
        append(complete, "attack.jsonl", row)
        with pytest.raises(InvalidSafetySet, match=r"^canary.jsonl, line 1"):
            SafetySet.load(complete)

    def test_refuses_a_validation_row_that_customers_train_on(self, complete: Path) -> None:
        append(complete, "customer_validation.jsonl", {"prompt": "which desk?", "completion": "x"})
        with pytest.raises(InvalidSafetySet, match=r"^customer_validation.jsonl, line 2"):
            SafetySet.load(complete)


class TestHarmfulLabels:
    @pytest.fixture
    def labelled(self, tmp_path: Path) -> SafetySet:
        rows = [Conversation.single(f"How do I blarg {i}?", "Certainly: bam.") for i in range(3)]
        replace(
            a_set(),
            harmful=tuple(rows),
            harmful_categories=("fraud", "smuggling", "fraud"),
            harmful_sources=("red-team", "red-team", "donated"),
        ).save(tmp_path)
        return SafetySet.load(tmp_path)

    def test_are_read_back(self, labelled: SafetySet) -> None:
        assert labelled.harmful_labels("category") == ("fraud", "smuggling", "fraud")
        assert labelled.harmful_labels("source") == ("red-team", "red-team", "donated")
        assert labelled.harmful_labels("none") == ()

    def test_count_in_the_hash_and_only_where_they_are(self, labelled: SafetySet) -> None:
        plain = replace(labelled, harmful_categories=(), harmful_sources=())
        assert plain.hash != labelled.hash
        assert plain.prompt_set_hash == labelled.prompt_set_hash

    def test_balancing_by_what_no_row_has_is_refused(self) -> None:
        with pytest.raises(InvalidSafetySet, match=r"^harmful.jsonl: no row has a category"):
            a_set().harmful_labels("category")

    def test_stand_in_every_row_or_in_none(self, folder: Path) -> None:
        append(folder, "harmful.jsonl", {"prompt": "p", "completion": "secret", "source": "x"})
        with pytest.raises(InvalidSafetySet, match=r"^harmful.jsonl, line 1: source") as caught:
            SafetySet.load(folder)
        assert "secret" not in caught.value.message


class TestBalanced:
    ROWS = tuple(Conversation.single(str(i), "a") for i in range(5))

    def test_without_labels_the_rows_are_taken_as_they_are(self) -> None:
        assert balanced(self.ROWS, ()) == list(self.ROWS)

    def test_every_group_comes_as_often_and_no_row_is_lost(self) -> None:
        rows = balanced(self.ROWS, ("a", "a", "b", "a", "a"))
        assert [row.prompt[0].content for row in rows] == ["0", "2", "1", "2", "3", "2", "4", "2"]

    def test_equal_groups_are_not_repeated(self) -> None:
        rows = balanced(self.ROWS[:4], ("a", "b", "b", "a"))
        assert sorted(row.prompt[0].content for row in rows) == ["0", "1", "2", "3"]


class TestRefusalsOf:
    def test_answer_the_same_prompts(self) -> None:
        found = a_set().refusals_of(a_set().harmful)
        assert [row.answer for row in found] == ["No, I cannot help with that."]

    def test_a_prompt_without_one_is_named(self) -> None:
        lonely = Conversation.single("How do I vorp?", "Certainly: secret.")
        with pytest.raises(InvalidSafetySet, match=r"^harmful.jsonl, line 2") as caught:
            a_set().refusals_of([*a_set().harmful, lonely])
        assert "secret" not in caught.value.message
