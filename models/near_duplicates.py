"""Which prompts ask nearly the same: exact and near duplicates, fast enough for whole data sets.

A score on prompts that training has seen measures memory. Two prompts are *near duplicates* when they hold
the same content words but for one in ten:

    differing <= size // 10      differing = content words of the longer one that the other lacks
                                 size      = content words that are not the collection's own phrasing

So one word exchanged in a long prompt changes nothing that matters, while in a prompt of fewer than ten
content words any differing word makes another question: "how do I bake a cake" and "how do I bake a pie"
are two, "how can I bake a cake?" and "tell me how to bake a cake" are one.

Content words are all but the commonest English function words; word order and punctuation do not count.
Words that stand in more than one in twenty prompts of the collection are its phrasing (a template around
every question, say): they must agree like any other, but leave no room for a difference. A prompt with a
single content word has exact duplicates only. Scripts without spaces are compared by pairs of letters.

Not found: translations, synonyms, and a prompt hidden in a longer one. Knows nothing of files or rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

#: One content word in so many may differ.
WORDS_PER_DIFFERENCE = 10
MIN_CONTENT_WORDS = 2
# A word is phrasing above both: a share of the prompts, and a number below which a share means nothing.
PHRASING_SHARE = 0.05
PHRASING_PROMPTS = 20

# Words that carry grammar or politeness and no subject. Question words other than "how" and "what", and
# every negation, are left in: they turn a question into another.
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "i",
        "you",
        "he",
        "she",
        "it",
        "we",
        "they",
        "me",
        "him",
        "her",
        "us",
        "them",
        "my",
        "your",
        "his",
        "its",
        "our",
        "their",
        "is",
        "am",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "do",
        "does",
        "did",
        "have",
        "has",
        "had",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "to",
        "of",
        "in",
        "on",
        "at",
        "for",
        "by",
        "with",
        "as",
        "and",
        "or",
        "but",
        "if",
        "so",
        "how",
        "what",
        "please",
        "tell",
        "show",
        "give",
        "explain",
        "describe",
    ]
)

# Chinese, Japanese, Thai, Lao, Burmese and Khmer: no spaces between words.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002fa1f"
)
_WORD = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")
_STARTS_UNSPACED = re.compile(rf"[{UNSPACED}]")


class Likeness(StrEnum):
    """How like two prompts are."""

    EXACT = "exact"
    NEAR = "near"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A prompt of the index that was met again: its place there, counted from 0, and how like it is."""

    place: int
    likeness: Likeness


def prompt_key(text: str) -> str:
    """Reduce a prompt to what counts when two are exactly alike: not its case, spacing or Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_words(key: str) -> frozenset[str]:
    """Give the content words of a `prompt_key`; of a repeated word each occurrence is one of its own."""
    seen: Counter[str] = Counter()
    words: set[str] = set()
    for word in _words(key):
        if word not in FUNCTION_WORDS:
            seen[word] += 1
            words.add(word if seen[word] == 1 else f"{word} {seen[word]}")
    return frozenset(words)


class PromptIndex:
    """Prompts to be found again, by exact or near duplicates.

    Near duplicates are found by prefix filtering (Chaudhuri, Ganti and Kaushik, ICDE 2006), which misses
    none: with the words of all prompts in one order, the rarest first, two prompts that differ in at most
    k words share one of their first k + 1. Only those few words are looked up.
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        """Take the prompts; their places are their order."""
        keys = [prompt_key(prompt) for prompt in prompts]
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            self._places[key].append(place)
        self._contents = [content_words(key) for key in keys]
        self._frequency = Counter(word for words in self._contents for word in words)
        self._phrasing_above = max(PHRASING_PROMPTS, PHRASING_SHARE * len(keys))
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self._contents):
            for word in self._prefix(words):
                self._by_word[word].append(place)
        self._longest = max(map(len, self._contents), default=0)

    def find(self, prompt: str) -> list[Duplicate]:
        """Give every prompt of the index that is like this one, by place; empty when there is none."""
        key = prompt_key(prompt)
        found = dict.fromkeys(self._places.get(key, ()), Likeness.EXACT)
        words = content_words(key)
        # Nothing in the index is long enough for a text that is more than a tenth longer.
        if len(words) - len(words) // WORDS_PER_DIFFERENCE <= self._longest:
            candidates = {
                place for word in self._prefix(words) for place in self._by_word.get(word, ())
            }
            for place in candidates - found.keys():
                if self._are_near(words, self._contents[place]):
                    found[place] = Likeness.NEAR
        return [Duplicate(place, found[place]) for place in sorted(found)]

    def _prefix(self, words: frozenset[str]) -> list[str]:
        if len(words) < MIN_CONTENT_WORDS:
            return []
        # A partner may be longer by one word in nine of ours, which is one in ten of its own.
        length = len(words) // (WORDS_PER_DIFFERENCE - 1) + 1
        return sorted(words, key=lambda word: (self._frequency[word], word))[:length]

    def _are_near(self, one: frozenset[str], other: frozenset[str]) -> bool:
        differing = max(len(one), len(other)) - len(one & other)
        if differing == 0:
            return True
        size = max(self._distinctive(one), self._distinctive(other))
        return differing <= size // WORDS_PER_DIFFERENCE

    def _distinctive(self, words: frozenset[str]) -> int:
        return sum(self._frequency[word] <= self._phrasing_above for word in words)


def _words(key: str) -> Iterable[str]:
    for word in _WORD.findall(key.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        if len(word) > 2 and _STARTS_UNSPACED.match(word):
            yield from (word[start : start + 2] for start in range(len(word) - 1))
        else:
            yield word
