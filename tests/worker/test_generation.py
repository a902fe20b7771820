"""Batched generation gives what asking one by one gives, and stops where it should."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from models.rows import Message
from tests.tiny_model import tiny_adapted, tiny_model, tiny_tokenizer
from worker import generation
from worker.generation import encode_prompt, generate, stop_ids, template_hash


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


PROMPTS = [
    ask(text) for text in ("a much longer question than all", "b", "some words", "héé", "c d")
]


def always(token: int) -> PreTrainedModel:
    """A model that says one token for ever: its output layer looks at nothing but a bias."""
    model = tiny_model()
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 1.0
    model.lm_head = head
    return model


class TestGenerate:
    def test_long_prompts_share_a_batch_with_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 100)
        cut = list(generation._batches([10, 10, 20, 30, 40, 60, 101], 3))
        assert cut == [(0, 3), (3, 5), (5, 6), (6, 7)]
        assert list(generation._batches([], 3)) == []

    def test_answers_in_the_order_of_the_prompts_whatever_the_batches(self) -> None:
        model, tokenizer = tiny_model(), tiny_tokenizer()
        alone = [generate(model, tokenizer, [p], max_new_tokens=6)[0] for p in PROMPTS]
        for batch_size in (1, 2, 5):
            batched = generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size)
            assert batched == alone
        assert len(set(alone)) > 1

    def test_gives_new_tokens_only_and_as_many_as_asked_for(self) -> None:
        tokenizer = tiny_tokenizer()
        model = always(tokenizer.convert_tokens_to_ids("x"))
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=3) == ["xxx"] * len(PROMPTS)

    def test_stops_at_the_end_token_and_does_not_show_it(self) -> None:
        tokenizer = tiny_tokenizer()
        model = always(tokenizer.eos_token_id)
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=3) == [""] * len(PROMPTS)

    def test_reports_progress_up_to_the_whole(self) -> None:
        seen: list[tuple[int, int]] = []
        generate(
            tiny_model(),
            tiny_tokenizer(),
            PROMPTS,
            max_new_tokens=1,
            batch_size=2,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert seen == [(2, 5), (4, 5), (5, 5)]

    def test_restores_the_training_mode(self) -> None:
        model = tiny_model().train()
        generate(model, tiny_tokenizer(), PROMPTS[:1], max_new_tokens=1)
        assert model.training

    def test_is_greedy_whatever_the_model_folder_asks_for(self) -> None:
        model, tokenizer = tiny_model(), tiny_tokenizer()
        greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
        model.generation_config.do_sample = True
        model.generation_config.temperature = 5.0
        model.generation_config.repetition_penalty = 3.0
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == greedy

    def test_leaves_the_decoding_of_an_adapted_model_as_it_was(self) -> None:
        adapted = tiny_adapted()
        before = adapted.get_base_model().generation_config
        generate(adapted, tiny_tokenizer(), PROMPTS[:1], max_new_tokens=1)
        assert adapted.get_base_model().generation_config is before

    def test_draws_from_the_global_random_state_when_asked(self) -> None:
        model, tokenizer = tiny_model(), tiny_tokenizer()

        def draw(seed: int) -> list[str]:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return generate(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=2.0)

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)

    def test_nothing_asked_nothing_answered(self) -> None:
        assert generate(tiny_model(), tiny_tokenizer(), [], max_new_tokens=3) == []


class TestStopIds:
    def test_knows_the_tokenizers_end(self) -> None:
        tokenizer = tiny_tokenizer()
        assert tokenizer.eos_token_id in stop_ids(tiny_model(), tokenizer)

    def test_knows_every_end_that_the_model_folder_names(self) -> None:
        model = tiny_model()
        model.generation_config.eos_token_id = [7, 8]
        assert {7, 8} <= set(stop_ids(model, tiny_tokenizer()))

    def test_knows_the_token_with_which_the_template_closes_a_turn(self) -> None:
        # A base model's own end is another token than the one its chat template writes.
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = "<system>"
        assert tokenizer.convert_tokens_to_ids("<end>") != tokenizer.eos_token_id
        tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
        assert tokenizer.convert_tokens_to_ids("<end>") in stop_ids(tiny_model(), tokenizer)


class TestTemplate:
    def test_a_prompt_ends_where_the_assistant_begins(self) -> None:
        tokenizer = tiny_tokenizer()
        turns = (Message("system", "s"), Message("user", "u"))
        assert (
            tokenizer.decode(encode_prompt(tokenizer, turns))
            == "<system>s<end><user>u<end><assistant>"
        )

    def test_another_template_has_another_hash(self) -> None:
        one, other = tiny_tokenizer(), tiny_tokenizer("{{ messages[0]['content'] }}")
        assert template_hash(one) == template_hash(tiny_tokenizer())
        assert template_hash(one) != template_hash(other)
