"""One word in ten may differ: long prompts survive an edit, short ones are told apart by any word."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from models.near_duplicates import Duplicate, Likeness, PromptIndex, content_words, prompt_key

LONG = (
    "A baker fills three trays with twelve rolls each, sells twenty of them before noon at two coins "
    "apiece and gives the others away. How many rolls did the baker give away that day?"
)


def likeness(one: str, other: str) -> Likeness | None:
    found = PromptIndex([one]).find(other)
    assert found == [] or [duplicate.place for duplicate in found] == [0]
    return found[0].likeness if found else None


class TestWhatCounts:
    @pytest.mark.parametrize(
        "same",
        [LONG.upper(), f"  {LONG}\n", LONG.replace(" ", "\N{NO-BREAK SPACE}")],
    )
    def test_case_and_spacing_are_no_difference(self, same: str) -> None:
        assert likeness(LONG, same) == Likeness.EXACT

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("How do I bake a cake?", "How do I bake a cake"),
            ("How can I bake a cake?", "Please tell me how to bake a cake."),
            ("Why don't cats swim?", "why don\N{RIGHT SINGLE QUOTATION MARK}t cats swim"),
            (LONG, LONG.replace("twelve", "fifteen")),
            (LONG, LONG.replace("A baker", "One morning a baker")),
            (LONG, LONG.replace("How many rolls", "Altogether, how many rolls")),
        ],
    )
    def test_nearly_the_same(self, one: str, other: str) -> None:
        assert likeness(one, other) == likeness(other, one) == Likeness.NEAR

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("How do I bake a cake?", "How do I bake a pie?"),
            ("How do I bake a cake?", "How do I bake a cake without eggs?"),
            ("My friend asked me to sew a hat. Where do I start?",
             "My friend asked me to sew a coat. Where do I start?"),
            ("How do I kill a Python process?", "How do I kill a python?"),
            ("Who made this?", "When was it made?"),
            ("test 1", "test 2"),
            ("cats", "tell me how cats do"),  # one content word says too little
            ("???", "!!!"),
            (LONG, LONG.replace("twelve rolls", "fifteen buns").replace("noon", "dusk")
             .replace("twenty", "thirty")),
            ("如何在家里做一个蛋糕", "如何在家里做一个面包"),
        ],
    )  # fmt: skip
    def test_another_question(self, one: str, other: str) -> None:
        assert likeness(one, other) is None
        assert likeness(other, one) is None

    def test_scripts_without_spaces_have_near_duplicates_too(self) -> None:
        text = (
            "昨天下午我和朋友一起在公园里看到很多人放风筝唱歌跳舞我们也坐下来吃了午饭然后走路回家"
        )
        assert likeness(text, text.replace("午饭", "晚饭")) == Likeness.NEAR

    def test_a_word_that_is_repeated_counts_each_time(self) -> None:
        assert content_words("very very old") == {"very", "very 2", "old"}
        assert likeness("buffalo buffalo run", "buffalo run") is None

    def test_a_template_around_every_prompt_leaves_no_room_for_differences(self) -> None:
        template = (
            "Below stands one request that somebody wrote yesterday; read it twice, think carefully, "
            "then answer politely, briefly, truthfully: bake a {}"
        )
        things = ["cake", "pie", "loaf", *(f"thing{number}" for number in range(60))]
        few, many = (
            PromptIndex([template.format("cake")]),
            PromptIndex(map(template.format, things)),
        )
        assert [d.likeness for d in few.find(template.format("tart"))] == [Likeness.NEAR]
        assert many.find(template.format("tart")) == []
        assert many.find(template.format("pie")) == [Duplicate(1, Likeness.EXACT)]


class TestIndex:
    def test_gives_every_duplicate_in_order(self) -> None:
        index = PromptIndex(
            ["sew a red hat", "bake bread", "How do I sew a red hat?", "Sew a RED hat"]
        )
        assert index.find("sew a red hat") == [
            Duplicate(0, Likeness.EXACT),
            Duplicate(2, Likeness.NEAR),
            Duplicate(3, Likeness.EXACT),
        ]

    def test_an_empty_index_and_an_empty_prompt_find_nothing(self) -> None:
        assert PromptIndex([]).find(LONG) == []
        assert PromptIndex([LONG]).find("") == []

    def test_finds_what_comparing_all_pairs_finds(self) -> None:
        draw = random.Random(0)
        words = [f"w{number}" for number in range(600)]
        prompts = []
        for _ in range(200):
            prompt = draw.choices(words, k=draw.randint(2, 45))
            edited = list(prompt)
            for _ in range(draw.randint(0, 4)):
                edited[draw.randrange(len(edited))] = draw.choice(words)
            if draw.random() < 0.5:
                edited.append(draw.choice(words))
            prompts += [" ".join(prompt), " ".join(edited)]
        index = PromptIndex(prompts)
        found = {
            (place, duplicate.place)
            for place, prompt in enumerate(prompts)
            for duplicate in index.find(prompt)
            if place < duplicate.place
        }
        bags = [content_words(prompt_key(prompt)) for prompt in prompts]
        above = max(20, 0.05 * len(prompts))
        common = {word for word in words if sum(word in bag for bag in bags) > above}
        expected = set()
        for one, other in combinations(range(len(prompts)), 2):
            shared = len(bags[one] & bags[other])
            longest = max(len(bags[one]), len(bags[other]))
            size = max(len(bags[one] - common), len(bags[other] - common))
            if longest == shared or longest - shared <= size // 10:
                expected.add((one, other))
        assert found == expected
        assert len(expected) > 40
