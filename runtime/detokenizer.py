"""Turns tokens into text as they come, without half characters, and finds stop strings. Knows the tokenizer by its `decode` alone."""

from __future__ import annotations

from collections.abc import Sequence as ReadableSequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what tokenizers decode unfinished UTF-8 to
CONTEXT = 6  # prompt tokens that are decoded with the text: spaces and subwords depend on their neighbours
MOST_CONTEXT = 12  # the same, where fewer begin within a character
MOST_STUCK = 64  # tokens without new text after which bytes that form no character are given up on
LONGEST_CHARACTER = 4  # bytes in UTF-8, so as many tokens at most


class Tokenizer(Protocol):
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...


class Detokenizer:
    """The text after a prompt. Text is held back while it may be half a character.

    A window of tokens is decoded with and without the unread ones; it begins at a character, because tokenizers that fall back to bytes
    give up a whole run of them when one character of it is cut.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: ReadableSequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = self._choose_context(prompt)  # context, then unread tokens
        self._read = len(self._window)
        self._num_sent = 0  # characters of the unread tokens that are out already
        self._num_stuck = 0  # tokens since text last came

    def feed(self, tokens: ReadableSequence[int]) -> str:
        """The text that these tokens settle; the same in all, however they are split."""
        bulk = max(0, len(tokens) - LONGEST_CHARACTER)
        text = self._feed_together(tokens[:bulk]) if bulk else ""
        return text + "".join(self._feed_together([token]) for token in tokens[bulk:])

    def _feed_together(self, tokens: ReadableSequence[int]) -> str:
        self._window += tokens
        before = self._decode(self._window[: self._read])
        fresh = self._decode(self._window)[len(before) :]
        settled = fresh.rstrip(REPLACEMENT)
        self._num_stuck = 0 if len(settled) > self._num_sent else self._num_stuck + len(tokens)
        if settled != fresh and self._num_stuck < MOST_STUCK:
            text = settled[self._num_sent :]
            self._num_sent += len(text)
            return text
        text = fresh[self._num_sent :]
        self._window = self._window[self._read :]
        self._read, self._num_sent, self._num_stuck = len(self._window), 0, 0
        return text

    def _choose_context(self, prompt: ReadableSequence[int]) -> list[int]:
        for length in range(CONTEXT, MOST_CONTEXT):
            context = list(prompt[-length:])
            if REPLACEMENT not in self._decode(context):
                return context
        return list(prompt[-CONTEXT:])

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


class StopFinder:
    """Collects text, holds back what may be the beginning of a stop string, and cuts before the first stop string found."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self.text = ""  # settled: up to the held-back end, or to the stop string
        self.is_complete = False  # a stop string was found: text takes no more
        self._held = ""

    def feed(self, text: str) -> bool:
        """Whether a stop string is complete; `text` then ends before it."""
        if not self._stops:
            self.text += text
            return False
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.text, self._held = self.text + self._held[: min(found)], ""
            self.is_complete = True
            return True
        keep = self._length_to_hold()
        self.text += self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return False

    def pass_over(self, text: str) -> None:
        """Takes text in which no stop string counts."""
        self.text += text

    def flush(self) -> None:
        """No more text comes: what was held back belongs to it."""
        self.text, self._held = self.text + self._held, ""

    def _length_to_hold(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
