"""Hyper-parameters: bounds, `auto`, the paper's names, and nothing unknown let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models.hyperparameters import (
    ALIGN_LEARNING_RATE,
    ALIGN_STEPS,
    DPO_LEARNING_RATE,
    FINETUNE_BATCH_SIZE,
    FINETUNE_EPOCHS,
    FINETUNE_LEARNING_RATE,
    MAX_LEARNING_RATE_MULTIPLIER,
    MAX_STEPS,
    AlignHyperparameters,
    DpoHyperparameters,
    FinetuneHyperparameters,
    LearningRateTooHigh,
    LoraConfig,
    ProtectionNeedsRows,
    Recipe,
    TooManySteps,
    TrainConfig,
    resolve_align,
    resolve_finetune,
)
from models.methods import (
    AlignmentMethod,
    BoosterConfig,
    DpoConfig,
    LisaConfig,
    SafeGradConfig,
    SftConfig,
)
from models.tuning import SafeLoraConfig, TuningProtection

METHOD: TypeAdapter[AlignmentMethod] = TypeAdapter(AlignmentMethod)


class TestFinetune:
    @pytest.mark.parametrize(
        "asked",
        [
            {"n_epochs": 0},
            {"n_epochs": 51},
            {"n_epochs": 1.5},
            {"n_epochs": "many"},
            {"batch_size": 0},
            {"batch_size": 257},
            {"batch_size": None},
            {"learning_rate_multiplier": 0},
            {"learning_rate_multiplier": -1},
            {"learning_rate_multiplier": MAX_LEARNING_RATE_MULTIPLIER * 1.01},
            {"learning_rate_multiplier": float("inf")},
            {"learning_rate_multiplier": float("nan")},
            {"learning_rate": 0.1},
        ],
    )
    def test_out_of_bounds_or_unknown_is_refused(self, asked: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            FinetuneHyperparameters.model_validate(asked)

    def test_all_auto(self) -> None:
        recipe = resolve_finetune(FinetuneHyperparameters(), rows=95, seed=3)
        assert recipe.method == SftConfig()
        assert recipe.train.learning_rate == FINETUNE_LEARNING_RATE
        assert recipe.train.batch_size == FINETUNE_BATCH_SIZE
        assert recipe.train.steps == 10 * FINETUNE_EPOCHS
        assert recipe.train.seed == 3
        assert (recipe.n_epochs, recipe.learning_rate_multiplier) == (FINETUNE_EPOCHS, 1.0)

    def test_the_caller_s_choice_holds(self) -> None:
        asked = FinetuneHyperparameters(n_epochs=3, batch_size=4, learning_rate_multiplier=0.5)
        recipe = resolve_finetune(asked, rows=10, seed=0)
        assert recipe.train.learning_rate == FINETUNE_LEARNING_RATE / 2
        assert (recipe.train.batch_size, recipe.train.steps) == (4, 9)

    def test_fewer_rows_than_a_batch(self) -> None:
        assert resolve_finetune(FinetuneHyperparameters(), rows=3, seed=0).train.batch_size == 3
        wide = resolve_finetune(FinetuneHyperparameters(batch_size=256), rows=3, seed=0)
        assert (wide.train.batch_size, wide.train.steps) == (256, 1)

    def test_more_steps_than_any_job_may_have(self) -> None:
        asked = FinetuneHyperparameters(n_epochs=50, batch_size=1)
        at_limit = resolve_finetune(asked, rows=MAX_STEPS // 50, seed=0)
        assert at_limit.train.steps == MAX_STEPS
        with pytest.raises(TooManySteps, match=r"10,000,050 steps") as caught:
            resolve_finetune(asked, rows=MAX_STEPS // 50 + 1, seed=0)
        assert caught.value.status_code == 400

    @given(
        st.integers(1, 20_000),
        st.integers(1, 50) | st.just("auto"),
        st.integers(1, 256) | st.just("auto"),
    )
    def test_every_row_is_seen_and_a_curve_is_drawn(
        self, rows: int, epochs: object, batch: object
    ) -> None:
        asked = FinetuneHyperparameters.model_validate({"n_epochs": epochs, "batch_size": batch})
        recipe = resolve_finetune(asked, rows=rows, seed=0)
        assert recipe.n_epochs is not None
        seen = recipe.train.steps * recipe.train.batch_size
        assert rows * recipe.n_epochs <= seen
        points = recipe.train.steps / recipe.metrics_every
        assert min(recipe.train.steps, 200) <= points <= 400


class TestDpo:
    @pytest.mark.parametrize(("asked", "given"), [("auto", 0.1), (2, 2.0), (1e-3, 1e-3)])
    def test_beta_is_resolved(self, asked: object, given: float) -> None:
        chosen = DpoHyperparameters.model_validate({"beta": asked})
        recipe = resolve_finetune(chosen, rows=40, seed=0)
        assert recipe.method == DpoConfig(beta=given)
        assert (recipe.train.batch_size, recipe.train.steps) == (10, 4)
        assert recipe.train.learning_rate == DPO_LEARNING_RATE < FINETUNE_LEARNING_RATE

    @pytest.mark.parametrize("beta", [0, -1, 2.1, "high", None])
    def test_beta_s_bounds(self, beta: object) -> None:
        with pytest.raises(ValidationError):
            DpoHyperparameters.model_validate({"beta": beta})

    @pytest.mark.parametrize(("batch", "micro"), [(1, 1), (2, 1), (5, 3), (256, 128)])
    def test_as_many_answers_are_in_memory_as_a_supervised_batch_has_rows(
        self, batch: int, micro: int
    ) -> None:
        recipe = resolve_finetune(DpoHyperparameters(batch_size=batch), rows=300, seed=0)
        assert recipe.train.micro_batch_size == micro

    @pytest.mark.parametrize(
        "tuning",
        [
            TuningProtection(safety_share=0.1),
            TuningProtection(method=LisaConfig()),
            TuningProtection(method=SafeGradConfig()),
        ],
    )
    def test_safety_rows_are_not_trained_beside_pairs(self, tuning: TuningProtection) -> None:
        assert tuning.trains_safety_rows
        with pytest.raises(ProtectionNeedsRows):
            resolve_finetune(DpoHyperparameters(), rows=40, seed=0, tuning=tuning)

    def test_every_other_protection_combines(self) -> None:
        tuning = TuningProtection(
            max_learning_rate_multiplier=0.2,
            canary_stop=0.5,
            repair=SafeLoraConfig(),
            scales=(1, 0.5),
            max_rank=16,
        )
        recipe = resolve_finetune(DpoHyperparameters(), rows=40, seed=0, tuning=tuning)
        assert recipe.tuning == tuning
        assert recipe.method == DpoConfig()
        assert recipe.learning_rate_multiplier == 0.2


class TestProtectedFinetune:
    def test_safety_rows_come_on_top_of_the_customer_s_steps(self) -> None:
        tuning = TuningProtection(safety_share=0.1)
        recipe = resolve_finetune(
            FinetuneHyperparameters(n_epochs=2), rows=100, seed=0, tuning=tuning
        )
        assert recipe.train.steps == 22
        assert recipe.tuning == tuning

    def test_so_do_lisa_s_alignment_turns(self) -> None:
        lisa = LisaConfig(alignment_steps=1, user_steps=4)
        recipe = resolve_finetune(
            FinetuneHyperparameters(), rows=80, seed=0, tuning=TuningProtection(method=lisa)
        )
        assert recipe.method == lisa
        assert recipe.train.steps == 8 + 2

    @pytest.mark.parametrize(
        ("limit", "asked", "given"), [(0.5, "auto", 0.5), (2, "auto", 1), (2, 2, 2), (2, 0.1, 0.1)]
    )
    def test_the_rate_stays_within_the_provider_s_limit(
        self, limit: float, asked: object, given: float
    ) -> None:
        recipe = resolve_finetune(
            FinetuneHyperparameters.model_validate({"learning_rate_multiplier": asked}),
            rows=10,
            seed=0,
            tuning=TuningProtection(max_learning_rate_multiplier=limit),
        )
        assert recipe.learning_rate_multiplier == given
        assert recipe.train.learning_rate == FINETUNE_LEARNING_RATE * given

    def test_a_rate_above_it_is_refused(self) -> None:
        with pytest.raises(
            LearningRateTooHigh, match=r"of 3 is more .* the limit is 2\."
        ) as caught:
            resolve_finetune(
                FinetuneHyperparameters(learning_rate_multiplier=3),
                rows=10,
                seed=0,
                tuning=TuningProtection(max_learning_rate_multiplier=2),
            )
        assert (caught.value.status_code, caught.value.param) == (400, "hyperparameters")

    def test_the_longest_job_includes_what_is_added(self) -> None:
        asked = FinetuneHyperparameters(n_epochs=50, batch_size=1)
        with pytest.raises(TooManySteps):
            resolve_finetune(
                asked, rows=MAX_STEPS // 50, seed=0, tuning=TuningProtection(safety_share=0.01)
            )


class TestAlign:
    def test_defaults(self) -> None:
        recipe = resolve_align(BoosterConfig(), AlignHyperparameters(), seed=7)
        assert recipe.train.steps == ALIGN_STEPS
        assert recipe.train.learning_rate == ALIGN_LEARNING_RATE
        assert recipe.train.seed == 7
        assert recipe.n_epochs is None

    def test_every_choice_reaches_the_recipe(self) -> None:
        chosen = {
            "steps": 7,
            "batch_size": 3,
            "learning_rate": 0.5,
            "schedule": "cosine",
            "weight_decay": 0.25,
            "micro_batch_size": 2,
            "max_length": 99,
        }
        asked = AlignHyperparameters.model_validate({**chosen, "lora": {"r": 2}})
        recipe = resolve_align(SftConfig(), asked, seed=0)
        assert {name: getattr(recipe.train, name) for name in chosen} == chosen
        assert recipe.lora == LoraConfig(r=2)


class TestMethods:
    def test_booster_takes_the_paper_s_letter_or_python_s(self) -> None:
        assert BoosterConfig.model_validate({"lambda": 5}).lambda_ == 5
        assert BoosterConfig(lambda_=5).lambda_ == 5
        assert BoosterConfig(lambda_=5).model_dump()["lambda"] == 5

    def test_the_name_chooses_the_method(self) -> None:
        assert METHOD.validate_python({"name": "booster", "alpha": 0.1}) == BoosterConfig(alpha=0.1)
        assert METHOD.validate_python({"name": "sft"}) == SftConfig()

    @pytest.mark.parametrize(
        "value",
        [
            {"name": "magic"},
            {},
            {"name": "sft", "lambda": 5},
            {"name": "booster", "lambda": -1},
            {"name": "booster", "lambda": 5, "rho": 1},
            {"name": "booster", "alpha": 0},
            {"name": "booster", "alpha": float("nan")},
            {"name": "booster", "harmful_batch_size": 0},
        ],
    )
    def test_unknown_methods_fields_and_values_are_refused(self, value: object) -> None:
        with pytest.raises(ValidationError):
            METHOD.validate_python(value)


class TestBounds:
    @pytest.mark.parametrize(
        "facts",
        [
            {"steps": 0},
            {"steps": MAX_STEPS + 1},
            {"steps": 1, "learning_rate": 0},
            {"steps": 1, "learning_rate": 1.1},
            {"steps": 1, "max_grad_norm": 0},
            {"steps": 1, "warmup_ratio": 1},
            {"steps": 1, "micro_batch_size": 0},
            {"steps": 1, "seed": -1},
            {"steps": 1, "seed": 2**31},
            {"steps": 1, "max_length": 7},
            {"steps": 1, "schedule": "step"},
            {"steps": 1, "epochs": 3},
        ],
    )
    def test_training(self, facts: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            TrainConfig.model_validate(facts)

    @pytest.mark.parametrize(
        "facts",
        [
            {"r": 0},
            {"r": 257},
            {"alpha": 0},
            {"dropout": 1},
            {"target_modules": []},
            {"target_modules": "some"},
        ],
    )
    def test_lora(self, facts: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            LoraConfig.model_validate(facts)


class TestRecipe:
    @pytest.mark.parametrize(
        "recipe",
        [
            resolve_finetune(FinetuneHyperparameters(n_epochs=2), rows=50, seed=1),
            resolve_align(
                BoosterConfig(lambda_=3),
                AlignHyperparameters(lora=LoraConfig(target_modules=("q_proj",))),
                seed=2,
            ),
        ],
    )
    def test_reads_back_from_the_database_as_it_was(self, recipe: Recipe) -> None:
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe

    def test_an_error_quotes_no_input(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Recipe.model_validate({"train": {"steps": "zebra-7719"}})
        assert "zebra-7719" not in str(caught.value)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError):
            TrainConfig(steps=1).steps = 2  # type: ignore[misc]
