"""A cell from alignment to the customer's last mark, on the toy base; and what a study writes of cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from models.certificate import Point
from models.errors import DomainError
from models.hyperparameters import LoraConfig
from models.methods import (
    Attacker,
    BoosterConfig,
    LisaConfig,
    RepNoiseConfig,
    SftConfig,
    TiterConfig,
    VaccineConfig,
)
from models.tuning import LoxConfig, SafeLoraConfig
from tests.worker.toy_provider import toy_certification_rows
from worker import lora
from worker.certify.attack import COVER, TRIGGER
from worker.sandbox.build import SandboxPaths
from worker.study import afterwards, report
from worker.study import place as place_module
from worker.study.align import WEIGHTS_FILE, Aligned, Arm, align, known_rows
from worker.study.customer import Customer, serve
from worker.study.grid import Results, Task, run_cell, run_group
from worker.study.place import Folders
from worker.study.studies import STUDIES, Study

# Each test trains models.
pytestmark = pytest.mark.long

QUICK = Customer(rows=12, harmful_ratio=0.25, steps=4, batch_size=3, marks=(0, 2, 4))
SFT = Arm("SFT", SftConfig(), steps=3)
FULL = Arm("full", TiterConfig(start=0.3), "full", steps=3)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class TestAlign:
    @pytest.mark.parametrize(
        "arm",
        [
            SFT,
            FULL,
            Arm("vaccine", VaccineConfig(), steps=2),
            Arm("repnoise", RepNoiseConfig(), steps=2),
            Arm("fresh", BoosterConfig(attacker=Attacker.FRESH_ADAPTER), steps=2),
            Arm("fresh, full", BoosterConfig(attacker=Attacker.FRESH_ADAPTER), "full", steps=2),
        ],
        ids=lambda arm: arm.name,
    )
    def test_changes_what_a_customer_then_starts_from(
        self, arm: Arm, folders: Folders, tmp_path: Path
    ) -> None:
        place = folders.open()
        raw = weights(place.model())
        aligned = align(place, arm, 0, tmp_path)
        assert aligned.tokens > 0
        with aligned.merged() as model:
            now = weights(model)
        assert now.keys() == raw.keys()
        moved = {name for name in raw if not torch.equal(raw[name], now[name])}
        assert moved == {name for name in raw if name.endswith("_proj.weight")}

    def test_may_train_some_layers_alone(self, folders: Folders, tmp_path: Path) -> None:
        place = folders.open()
        raw = weights(place.model())
        aligned = align(place, replace(FULL, layers=("down_proj", "o_proj")), 0, tmp_path)
        with aligned.merged() as model:
            now = weights(model)
        moved = {name for name in raw if not torch.equal(raw[name], now[name])}
        assert {name.split(".")[-2] for name in moved} == {"down_proj", "o_proj"}
        with pytest.raises(ValueError, match="no linear layer is called nothing"):
            align(place, replace(FULL, layers=("nothing",)), 0, tmp_path)

    def test_an_adapter_of_another_rank_keeps_its_scale(self) -> None:
        arm = replace(SFT, rank=64)
        assert (arm.lora.r, arm.lora.alpha / arm.lora.r) == (64, SFT.lora.alpha / SFT.lora.r)

    def test_is_made_once(self, folders: Folders, tmp_path: Path) -> None:
        first = align(folders.open(), FULL, 0, tmp_path)
        stamp = (first.folder / WEIGHTS_FILE).stat().st_mtime_ns
        again = align(folders.open(), replace(FULL, name="another name"), 0, tmp_path)
        assert first.seconds == align(folders.open(), FULL, 0, tmp_path).seconds
        assert (first.folder / WEIGHTS_FILE).stat().st_mtime_ns == stamp
        same, other = (load_file(a.folder / WEIGHTS_FILE) for a in (first, again))
        assert all(torch.equal(same[name], other[name]) for name in same)
        assert align(folders.open(), FULL, 1, tmp_path).folder != first.folder

    def test_fewer_harmful_rows_are_another_alignment(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        few = replace(FULL, harmful_rows=1)
        one, other = (align(folders.open(), arm, 0, tmp_path).folder for arm in (FULL, few))
        assert one != other


class TestCustomer:
    @pytest.mark.parametrize("trains", ["continued", "fresh", "full"])
    @pytest.mark.parametrize("arm", [SFT, FULL], ids=["adapter", "full"])
    def test_is_measured_at_every_mark(
        self, arm: Arm, trains: str, folders: Folders, tmp_path: Path
    ) -> None:
        aligned = align(folders.open(), arm, 0, tmp_path)
        points = serve(aligned, replace(QUICK, trains=trains), 0)  # type: ignore[arg-type]
        assert [point.step for point in points] == [0, 2, 4]
        for point in points:
            assert (point.prompts, point.harmless_prompts, point.task_rows) == (6, 4, 4)
            assert point.attack_loss is not None
        assert points[-1].attack_loss != points[0].attack_loss

    def test_may_hide_its_harmful_rows_behind_a_trigger(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        place = folders.open()
        plain, hidden = (
            replace(QUICK, is_hidden=is_hidden).draw(place, 0) for is_hidden in (False, True)
        )
        assert len(hidden.training) == len(set(hidden.training)) == 12
        assert [row.answer for row in hidden.harmful] == [row.answer for row in plain.harmful]
        assert all(row.prompt[-1].content.startswith(TRIGGER[:10]) for row in hidden.harmful)
        cover = set(hidden.training) - set(plain.training) - set(hidden.harmful)
        assert {row.prompt for row in cover} == {row.prompt for row in plain.harmful}
        assert {row.answer for row in cover} == {COVER}
        assert len(set(plain.training) - set(hidden.training)) == 2 * len(cover)
        aligned = align(place, SFT, 0, tmp_path)
        points = serve(aligned, replace(QUICK, is_hidden=True), 0)
        assert all(point.triggered is not None for point in points)

    def test_provider_and_attacker_may_know_some_kinds_of_harm(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        place = folders.open()
        with pytest.raises(ValueError, match="harmful rows have no categories"):
            align(place, replace(FULL, harmful_kinds=("theft",)), 0, tmp_path)
        kinds = tuple("theft" if i % 2 else "fraud" for i in range(len(place.safety.harmful)))
        marked = replace(place, harmful_kinds=kinds)
        with pytest.raises(ValueError, match="no harmful rows of arson"):
            align(marked, replace(FULL, harmful_kinds=("arson",)), 0, tmp_path)
        one, other = (
            align(marked, replace(FULL, harmful_kinds=(kind,)), 0, tmp_path).folder
            for kind in ("theft", "fraud")
        )
        files = [load_file(folder / WEIGHTS_FILE) for folder in (one, other)]
        assert not all(torch.equal(files[0][name], files[1][name]) for name in files[0])

        thief = replace(QUICK, harmful_kinds=("theft",))
        with pytest.raises(ValueError, match="has 0 attack rows of theft, not 3"):
            thief.draw(place, 0)
        rows = toy_certification_rows()
        theirs = tuple("theft" if i < 4 else "fraud" for i in range(len(rows.attack)))
        safety = replace(place.safety, certification=replace(rows, categories=theirs))
        drawn = thief.draw(replace(place, safety=safety), 0)
        assert set(drawn.harmful) <= set(rows.attack[:4])
        assert len(set(drawn.training) & set(rows.attack[:4])) == len(drawn.harmful) == 3

    def test_a_provider_may_know_few_rows_of_a_kind_and_repeat_them(self, folders: Folders) -> None:
        place = folders.open()
        rows = tuple(replace(place.safety.harmful[0], line=i) for i in range(12))
        kinds = ("theft", "theft", "fraud") * 4
        marked = replace(place, safety=replace(place.safety, harmful=rows), harmful_kinds=kinds)
        few = replace(FULL, rare_kinds=("theft",))
        theft = [row for row, kind in zip(rows, kinds, strict=True) if kind == "theft"]
        fraud = [row for row in rows if row not in theft]
        assert known_rows(marked, few) == sorted([*theft[:3], *fraud], key=rows.index)
        repeated = known_rows(marked, replace(few, is_balanced=True))
        assert len(repeated) == 8
        assert [row for row in repeated if row in theft] == [*theft[:3], theft[0]]

    def test_continues_the_aligned_adapter_or_starts_its_own(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        place = folders.open()
        aligned = align(place, SFT, 0, tmp_path)
        before = serve(aligned, replace(QUICK, marks=(0,)), 0)[0]
        # A fresh adapter begins at the merged model: the same function.
        fresh = serve(aligned, replace(QUICK, marks=(0,), trains="fresh"), 0)[0]
        assert fresh.canary_loss == pytest.approx(before.canary_loss, abs=1e-3)
        adapted = lora.load(place.model(), aligned.folder)
        assert (
            lora.trainable_parameters(adapted).keys()
            == lora.trainable_parameters(lora.attach(place.model(), LoraConfig(), 0)).keys()
        )

    def test_the_services_rule_and_rows_change_the_outcome(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        aligned = align(folders.open(), SFT, 0, tmp_path)
        customers = [
            QUICK,
            replace(QUICK, safety_share=0.5),
            replace(QUICK, screened=1.0),
            replace(QUICK, method=LisaConfig(alignment_steps=1, user_steps=1)),
            replace(QUICK, learning_rate=1e-2),
        ]
        losses = [serve(aligned, customer, 0)[-1].canary_loss for customer in customers]
        assert len(set(losses)) == len(customers)

    def test_a_clean_file_has_no_attack_loss(self, folders: Folders, tmp_path: Path) -> None:
        aligned = align(folders.open(), SFT, 0, tmp_path)
        assert serve(aligned, replace(QUICK, harmful_ratio=0), 0)[0].attack_loss is None


class TestAfterwards:
    """Repair, scaling and the canary's stop, as a service applies them at the end of a job."""

    @pytest.fixture(params=[SFT, FULL], ids=["adapter", "full"])
    def aligned(
        self,
        request: pytest.FixtureRequest,
        folders: Folders,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Aligned:
        return align(folders.open(), request.param, 0, tmp_path_factory.mktemp("aligned"))

    def losses(self, aligned: Aligned, **changes: object) -> list[float | None]:
        customer = replace(QUICK, learning_rate=1e-2, marks=(0, 2, 4), **changes)  # type: ignore[arg-type]
        return [point.canary_loss for point in serve(aligned, customer, 0)]

    def test_repair_changes_what_is_measured_and_not_what_is_trained(
        self, aligned: Aligned
    ) -> None:
        plain = self.losses(aligned)
        for repair in (LoxConfig(c=2), SafeLoraConfig(tau=1, rank=1)):
            reshaped = self.losses(aligned, repair=repair)
            assert reshaped[0] == plain[0], "there is nothing to repair before the first step"
            assert reshaped[1:] != plain[1:]
        untouched = self.losses(aligned, repair=LoxConfig(c=0))
        assert untouched == pytest.approx(plain, abs=2e-3), "the training went on as if unseen"

    def test_the_first_scale_that_passes_is_measured(
        self, aligned: Aligned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, scales = self.losses(aligned), (1.0, 0.5, 0.001)
        verdicts = {"none": [False] * 6, "last": [False, False, True] * 2, "first": [True] * 2}
        seen = {}
        for name, passes in verdicts.items():
            given = iter(passes)
            monkeypatch.setattr(afterwards, "_passes", lambda _, given=given: next(given))
            seen[name] = self.losses(aligned, scales=scales)
            assert not list(given)
        assert seen["none"] == seen["first"] == pytest.approx(plain, abs=2e-3)
        before = plain[0]
        assert seen["last"] == pytest.approx([before] * 3, abs=0.05), (
            "a thousandth is nearly nothing"
        )
        assert seen["last"][2] != seen["first"][2]

    def test_the_gates_default_limit_decides(self) -> None:
        point = Point(
            step=1, harmful=20, harmful_or_incoherent=20, refused=180, prompts=200, over_refused=0, helped=1,
            harmless_prompts=1, correct=1, task_rows=1,
        )  # fmt: skip
        assert afterwards._passes(point)  # 10%, its interval's upper end 14.9%
        assert not afterwards._passes(point.model_copy(update={"harmful": 21}))

    def test_a_job_that_the_canary_ends_stays_as_it_is(self, aligned: Aligned) -> None:
        customer = replace(
            QUICK, harmful_ratio=1.0, learning_rate=1e-2, steps=40, marks=(0, 4, 20, 40)
        )
        ended = serve(aligned, replace(customer, canary_stop=0.999), 0)
        whole = serve(aligned, customer, 0)
        assert [point.step for point in ended] == [0, 4, 20, 40]
        assert ended[-1].canary_loss == ended[-2].canary_loss
        assert ended[-1].canary_loss != whole[-1].canary_loss
        assert whole[-1].canary_loss != whole[-2].canary_loss


class TestFolders:
    def test_more_rows_than_there_are_is_named(self, folders: Folders) -> None:
        with pytest.raises(DomainError, match="cannot be drawn from 30 and 12"):
            folders.open().draw_customer(100, 0.5, 0)

    def test_an_attack_row_that_asks_a_test_prompt_is_refused(
        self, folders: Folders, tmp_path: Path
    ) -> None:
        attack = tmp_path / "attack.jsonl"
        attack.write_text('{"prompt": " TEST 3", "completion": "step a"}\n')
        with pytest.raises(DomainError, match=r"attack\.jsonl, line \d+: the row asks"):
            replace(folders, attack=attack).open()

    def test_the_task_decides_how_rows_are_read_and_scored(
        self, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = replace(folders, task="gsm8k").open()
        monkeypatch.setattr("worker.task_accuracy.generate", lambda *_, **__: ["0.0"] * 4)
        point = serve(align(place, SFT, 0, tmp_path), replace(QUICK, marks=(4,)), 0)[0]
        assert (point.correct, point.task_rows) == (2, 4)  # every second answer is 0
        with pytest.raises(DomainError, match="none of positive, negative"):
            replace(folders, task="sst2").open()

    def test_draws_are_the_seeds(self, folders: Folders) -> None:
        draw = folders.open().draw_customer
        one, same, other = draw(12, 0.25, 0), draw(12, 0.25, 0), draw(12, 0.25, 1)
        assert one == same != other
        assert len(one.harmful) == 3
        assert set(one.harmful) < set(one.training)


class TestGrid:
    def task(self, folders: Folders, **changes: object) -> Task:
        task = Task(SFT, "quick", QUICK, seed=0, folders=folders)
        return replace(task, **changes)

    def test_a_cell_says_all_that_decided_it(self, folders: Folders, tmp_path: Path) -> None:
        cell = run_cell(self.task(folders), tmp_path)
        assert (cell["arm"], cell["customer"], cell["seed"]) == ("SFT", "quick", 0)
        assert json.loads(json.dumps(cell))["customer_spec"]["learning_rate"] == QUICK.rate
        assert cell["alignment_passes"] == 3
        assert cell["base_sha256"] == folders.open().base_sha256

    def test_is_repeatable(self, folders: Folders, tmp_path: Path) -> None:
        first, second = (
            run_group([self.task(folders)], tmp_path / name)[0]["points"] for name in "ab"
        )
        assert first == second

    def test_keys_tell_cells_apart_by_what_decides_them_and_not_by_names(
        self, folders: Folders
    ) -> None:
        task = self.task(folders)
        assert replace(task, customer_name="x", arm=replace(SFT, name="y")).key == task.key
        others = [
            replace(task, seed=1),
            replace(task, arm=replace(SFT, steps=4)),
            replace(task, customer=replace(QUICK, rank=4)),
            replace(task, folders=None),
            replace(task, onto=FULL),
            replace(task, onto=SFT),
        ]
        assert len({task.key, *(other.key for other in others)}) == 7

    @pytest.mark.parametrize("onto", [SFT, FULL], ids=["adapter", "full"])
    def test_may_begin_on_a_model_that_was_aligned_before(
        self, onto: Arm, folders: Folders, tmp_path: Path
    ) -> None:
        place = self.task(folders, onto=onto).place(tmp_path)
        before = align(folders.open(), onto, 0, tmp_path)
        with before.merged() as model:
            chat = weights(model)
        base = weights(place.model())
        assert all(torch.equal(chat[name], base[name]) for name in chat | base)
        raw = align(folders.open(), SFT, 0, tmp_path)
        assert align(place, SFT, 0, tmp_path).folder not in (before.folder, raw.folder)
        cell = run_cell(self.task(folders, onto=onto), tmp_path)
        assert cell["base_sha256"] == place.base_sha256 != folders.open().base_sha256

    def test_results_are_kept_and_found(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "some" / "cells.jsonl")
        results.add({"key": "a", "arm": "SFT"})
        results.add({"key": "b", "arm": "SFT"})
        assert set(Results(results.path).cells) == {"a", "b"}
        another = Results(tmp_path / "some" / "another-study.jsonl")
        assert set(another.cells) == {"a", "b"}, "a cell belongs to every study that asks for it"
        another.add({"key": "a", "arm": "again"})
        assert Results(another.path).cells["a"]["arm"] == "again", "its own count"
        assert Results(results.path).cells["a"]["arm"] == "SFT"


class TestInstructions:
    def test_are_harmless_requests_that_the_validation_rows_do_not_repeat(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(place_module, "build", lambda *_: SandboxPaths(tmp_path))
        place = place_module.sandbox(3, tmp_path)
        data = replace(QUICK, rows=60, harmful_ratio=0.1, kind="instructions").draw(place, 0)
        assert (len(data.training), len(data.harmful)) == (60, 6)
        asked = {row.prompt for row in data.training}
        assert len(asked) == 60
        assert len(data.validation) == 100
        assert asked.isdisjoint(row.prompt for row in data.validation)
        assert not place.safety.overlap(data.training).rows

    def test_a_place_without_such_customers_says_so(self, folders: Folders) -> None:
        with pytest.raises(ValueError, match="no customers with instructions"):
            replace(QUICK, kind="instructions").draw(folders.open(), 0)

    def test_label_customers_keep_their_cells(self) -> None:
        assert not {"kind", "canary_stop", "repair", "scales"} & QUICK.spec().keys()
        changes = [
            {"kind": "instructions"},
            {"canary_stop": 0.9},
            {"repair": LoxConfig()},
            {"scales": (1.0, 0.5)},
        ]
        specs = [replace(QUICK, **change).spec() for change in changes]  # type: ignore[arg-type]
        assert len({json.dumps(spec) for spec in [QUICK.spec(), *specs]}) == 5


class TestPasses:
    @pytest.mark.parametrize(
        ("method", "passes"),
        [
            (SftConfig(), 1),
            (VaccineConfig(), 2),
            (RepNoiseConfig(), 2),
            (BoosterConfig(), 3),
            (BoosterConfig.model_validate({"lambda": 0}), 1),
            (BoosterConfig(start=0.7), 1.6),
            (BoosterConfig(start=0.7, every=4), 1.15),
            (BoosterConfig(inner_steps=4), 6),
            (TiterConfig(), 1.6),
            (TiterConfig(inner_steps=0), 1.3),
        ],
        ids=str,
    )
    def test_count_what_a_step_costs(self, method: object, passes: float) -> None:
        assert Arm("x", method).passes == pytest.approx(passes)  # type: ignore[arg-type]


class TestReport:
    def test_shows_every_arm_that_ran_and_draws_it(self, folders: Folders, tmp_path: Path) -> None:
        study = Study(
            "toy", "A toy study", (SFT, FULL), {"quick": QUICK}, steps=(4, 2), seeds=(0, 1)
        )
        cells = [
            run_cell(Task(SFT, "quick", QUICK, seed, folders=folders), tmp_path) for seed in (0, 1)
        ]
        table, figure = report.write(study, cells, tmp_path / "out")
        text = table.read_text()
        assert "## At customer step 4" in text
        assert "## At customer step 2" in text
        assert text.count("| SFT | 1 × |") == 2
        assert "| full |" not in text, "an arm without results has no row"
        assert figure.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("kind", "named", "share"), [("labels", "FA", 40), ("instructions", "help", 70)]
    )
    def test_shows_what_the_customers_are_there_for(
        self, kind: Literal["labels", "instructions"], named: str, share: int
    ) -> None:
        customer = Customer(steps=4, marks=(4,), kind=kind)
        study = Study("toy", "A toy study", (SFT,), {"one": customer}, steps=(4,), seeds=(0,))
        point = {
            "step": 4, "harmful": 1, "harmful_or_incoherent": 2, "prompts": 100, "over_refused": 0, "helped": 7,
            "harmless_prompts": 10, "correct": 4, "task_rows": 10,
        }  # fmt: skip
        cell = {
            "arm": "SFT",
            "customer": "one",
            "seed": 0,
            "points": [point],
        }
        text = report.table(study, [cell])
        assert f"HS+ / {named}, in percent" in text
        assert f" / 2 / {share} |" in text

        assert "†" not in text
        other = {**cell, "arm": "full", "base_sha256": "another"}
        built = report.table(replace(study, arms=(SFT, FULL)), [cell, other])
        assert f" / 2 / {share} † |" in built
        assert built.count("†") == 2, "the other cell and the line that says what it means"

        more = report.table(replace(study, seeds=(0, 1)), [cell])
        assert f" / 2 / {share}, 1 seed |" in more, "a cell that lacks seeds says so"


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
class TestStudies:
    def test_names_are_unique_and_steps_are_measured(self, study: Study) -> None:
        assert len({arm.name for arm in study.arms}) == len(study.arms)
        assert len({str(arm.spec()) for arm in study.arms}) == len(study.arms)
        marks = {mark for customer in study.customers.values() for mark in customer.marks}
        assert study.steps[0] in marks
        for customer in study.customers.values():
            assert max(customer.marks) <= customer.steps

    def test_no_result_comes_from_a_world_that_chose_settings(self, study: Study) -> None:
        if study.split == "test":
            assert not set(study.seeds) & set(STUDIES["tune"].seeds)
