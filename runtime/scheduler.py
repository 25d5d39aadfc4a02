"""Decides which tokens of which sequences run in the next step: first come, first served, prefill chunks beside decodes.

Knows pages by number only; no tensors. A step may be scheduled before the tokens of the one before it are known.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tilewright.ir.errors import RequestError
from tilewright.ir.manifest import Limits
from tilewright.runtime.pages import PagePool
from tilewright.runtime.sequence import NO_SLOT, FinishReason, Sequence, Status

_FINISHED = Status.FINISHED  # looked up for each token


class Chunk(NamedTuple):
    """Tokens [start, start + length) of a sequence run in a step."""

    sequence: Sequence
    start: int
    length: int
    samples: bool  # reaches the last token, so that the next one is sampled


class Step:
    """Its chunks are made when they are asked for: a decode step, where each is one token, is described by `sampling` and `starts` alone."""

    __slots__ = ("_chunks", "admitted", "grown", "is_decode", "num_tokens", "sampling", "starts")

    def __init__(
        self, chunks: list[Chunk] | None, sampling: list[Sequence], admitted: list[Sequence], grown: list[Sequence], *, starts: list[int]
    ) -> None:
        self._chunks = chunks
        self.sampling = sampling  # sequences of chunks that sample, in their order
        self.admitted = admitted  # given a slot in this step
        self.grown = grown  # given pages in this step
        self.starts = starts  # position of the first token of each chunk
        self.is_decode = chunks is None  # every chunk is one token that the device sampled itself, into the sequence's slot
        self.num_tokens = len(starts) if chunks is None else sum([chunk.length for chunk in chunks])

    @property
    def chunks(self) -> list[Chunk]:
        if self._chunks is None:
            self._chunks = [Chunk(sequence, start, 1, True) for sequence, start in zip(self.sampling, self.starts)]
        return self._chunks


class Scheduler:
    """`schedule` and `complete` are called alternately, or `schedule` runs ahead by a step. Sequences stand in order of arrival."""

    def __init__(self, limits: Limits, num_pages: int) -> None:
        self.limits = limits
        self.pool = PagePool(num_pages, limits.page_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._free_slots = list(range(limits.max_batch_size - 1, -1, -1))
        self._num_arrivals = 0
        self._grown: list[Sequence] = []  # given pages since the last step

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Raises RequestError for a sequence that could not finish even if it were alone."""
        needed = self._most_pages(sequence)
        if needed > self.pool.num_pages:
            held = self.pool.num_pages * self.limits.page_size
            asked = f"{len(sequence.prompt)} prompt tokens and max_tokens={sequence.max_outputs}"
            problem = f"{asked} need a cache of {len(sequence.prompt) + sequence.max_outputs - 1} tokens, this one holds {held}"
            raise RequestError(f"request {sequence.request_id}", problem, "lower max_tokens, shorten the prompt or raise max_cache_tokens")
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """The next step; one of no tokens where nothing can run before a step in flight completes."""
        return self._schedule_decode() or self._schedule_chunks()

    def _schedule_decode(self) -> Step | None:
        """The step in which every running sequence decodes, and nothing else can be done: what most steps are, so it is kept short.

        None, and nothing has changed, where some sequence has another number of tokens to run, or needs a page that is not free.
        """
        if len(self.running) > self.limits.max_tokens or self._can_admit():
            return None
        sampling, starts, full = [], [], []
        for sequence in self.running:
            num_tokens = sequence.num_tokens
            if num_tokens >= sequence.max_len:  # its last token is in flight
                continue
            start = sequence.num_computed
            if num_tokens - start != 1 or not sequence.token_in_slot:
                return None
            if start >= sequence.num_reserved:
                full.append(sequence)
            sampling.append(sequence)
            starts.append(start)
        if len(full) > self.pool.num_free:
            return None
        for sequence in full:
            self._reserve(sequence, sequence.num_tokens)
        for sequence in sampling:
            sequence.num_computed += 1
            sequence.num_tokens += 1
        return Step(None, sampling, [], self._take_grown(), starts=starts)

    def _schedule_chunks(self) -> Step:
        preemptions = self.num_preemptions
        chunks = self._continue_running(self.limits.max_tokens)
        budget = self.limits.max_tokens - sum(chunk.length for chunk in chunks)
        admitted: list[Sequence] = []
        if preemptions == self.num_preemptions:
            while budget > 0 and (sequence := self._admit()):
                length = min(sequence.num_uncomputed, budget)
                self._reserve(sequence, length)
                admitted.append(sequence)
                chunks.append(_advance(sequence, length))
                budget -= length
        is_decode = all([chunk.sequence.token_in_slot and chunk.length == 1 for chunk in chunks])
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        for sequence in sampling:
            sequence.num_tokens += 1
            sequence.token_in_slot = True
        return Step(None if is_decode else chunks, sampling, admitted, self._take_grown(), starts=[chunk.start for chunk in chunks])

    def _take_grown(self) -> list[Sequence]:
        grown, self._grown = self._grown, []
        return grown

    def complete(self, step: Step, tokens: list[int]) -> list[int]:
        """Takes the tokens sampled for `step.sampling`; finished sequences get none. Returns the rows whose sequences ended or are watched."""
        rows = []
        for row, (sequence, token) in enumerate(zip(step.sampling, tokens, strict=True)):
            if sequence.status is _FINISHED:
                continue
            output = sequence.output
            output.append(token)
            may_end = token in sequence.stop_ids or len(output) >= sequence.max_outputs
            if may_end and (reason := sequence.find_end()):
                self.finish(sequence, reason)
                rows.append(row)
            elif sequence.is_watched:
                rows.append(row)
        return rows

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Pages and slot are free at once: what a step in flight still writes there comes before what a later step writes."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason

    def _continue_running(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            length = sequence.num_uncomputed
            if length > 0:
                length = min(length, budget)
                if sequence.num_computed + length > sequence.num_reserved and not self._reserve(sequence, sequence.num_computed + length):
                    break
                chunks.append(_advance(sequence, length))
                budget -= length
            index += 1
        return chunks

    def _can_admit(self) -> bool:
        """Whether there is room for all tokens of the first waiting sequence, and a page of growth for each running one that may need one."""
        if not self.waiting or not self._free_slots or self.waiting[0].num_pending:
            return False
        room = self.pool.num_free - self.pool.pages_for(self.waiting[0].num_tokens)
        if not self.running or room >= len(self.running):
            return True
        return room >= sum(1 for sequence in self.running if self._most_pages(sequence) > len(sequence.pages))

    def _most_pages(self, sequence: Sequence) -> int:
        """What it will hold at its end; the last token is never run."""
        return self.pool.pages_for(len(sequence.prompt) + sequence.max_outputs - 1)

    def _admit(self) -> Sequence | None:
        """Moves the first waiting sequence to the running ones, if it can be."""
        if not self._can_admit():
            return None
        sequence = self.waiting.popleft()
        self.running.append(sequence)
        sequence.status, sequence.slot = Status.RUNNING, self._free_slots.pop()
        return sequence

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives the sequence pages for num_tokens, preempting the latest ones; False if that was itself."""
        missing = self.pool.pages_for(num_tokens) - len(sequence.pages)
        while self.pool.num_free < missing:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += self.pool.take(missing)
        sequence.num_reserved = len(sequence.pages) * self.pool.page_size
        self._grown.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be computed again from its tokens."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status, sequence.num_computed = Status.WAITING, 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.pages, sequence.num_reserved, sequence.slot, sequence.token_in_slot = [], 0, NO_SLOT, False

    def check(self) -> None:
        """Pages and slots belong to one sequence each, none is lost, queues are in order of arrival."""
        self.pool.check()
        owned = [page for sequence in self.running for page in sequence.pages]
        assert len(set(owned)) == len(owned), "a page belongs to two sequences"
        assert len(owned) == self.pool.num_used, f"{self.pool.num_used} pages are taken, sequences own {len(owned)}"
        slots = [sequence.slot for sequence in self.running]
        assert sorted(slots + self._free_slots) == list(range(self.limits.max_batch_size)), "a slot is lost or shared"
        arrivals = [sequence.arrival for sequence in [*self.running, *self.waiting]]
        assert arrivals == sorted(arrivals), "sequences are out of order"
        for sequence in self.running:
            assert sequence.status is Status.RUNNING
            assert len(sequence.pages) == self.pool.pages_for(sequence.num_computed), "pages do not match the tokens computed"
        for sequence in self.waiting:
            assert sequence.status is Status.WAITING and not sequence.pages and sequence.slot == NO_SLOT


def _advance(sequence: Sequence, length: int) -> Chunk:
    start = sequence.num_computed
    sequence.num_computed = end = start + length
    return Chunk(sequence, start, length, end == sequence.num_tokens)
