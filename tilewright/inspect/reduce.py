"""The smallest graph on which a pass still does its fault. The best so far is on disk, as a graph and as a file that fails when it is run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import isnan
from pathlib import Path

from tilewright.inspect.bisect import Bisection, observable, worst_change
from tilewright.inspect.finding import Finding
from tilewright.inspect.repro import Attempt, fails, measure, render
from tilewright.inspect.resume import run_again, step_of
from tilewright.inspect.run import PassRecord
from tilewright.inspect.shrink import chunks_of, halve, num_elements, resize, resize_one, sizes_of, without
from tilewright.ir.errors import TilewrightError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.verifier import verify

TOKENS = 7
SECONDS = 120.0  # after which the best so far is kept
SMALL = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Candidate:
    graph: Graph
    num_tokens: int = TOKENS

    def __str__(self) -> str:
        return f"{len(self.graph)} ops, {self.num_tokens} tokens, {num_elements(self.graph, self.num_tokens):,} elements"


@dataclass(frozen=True, slots=True)
class Reduced:
    finding: Finding
    first: Candidate
    best: Candidate
    num_tries: int
    file: Path  # repro.py; it has been run and failed

    def __str__(self) -> str:
        return f"{self.finding}\nreduced in {self.num_tries} tries: {self.first} -> {self.best}; repro: {self.file}"


@dataclass
class Reduction:
    """Candidates are judged by the value that the pass must not move: a smaller graph has other logits, so that a gate on them means nothing.

    It must stay above rounding, and above the gate's bound where the gate names `rel`.
    """

    ladder: Bisection
    seconds: float = SECONDS
    num_tries: int = field(default=0, init=False)

    def find(self) -> Reduced | None:
        """None where the gate holds. Raises TilewrightError where no pass is guilty, or nothing fails with drawn or stored weights."""
        self._deadline = time.monotonic() + self.seconds
        finding = self.ladder.find()
        if finding is None:
            return None
        if finding.pass_number is None or finding.event is None or finding.floor is None:
            raise TilewrightError("reduce", f"no rewrite is guilty: {finding}", "reduce needs a pass that changes what a graph computes")
        record = self.ladder.bench.run[finding.pass_number]
        self._step, self._finding = step_of(record), finding
        self._tolerance = max([4 * finding.floor, *(bound for name, _, bound in self.ladder.gate.terms if name == "rel")])
        first = self._start(record)
        best = self._shrink_sizes(self._drop_ops(first)) if self._model is None else self._drop_ops(first)
        file = self._save(best)
        if not fails(file):
            raise TilewrightError(str(file), "fails in this process and not in one of its own", "look at what the pass depends on")
        return Reduced(finding, first, best, self.num_tries, file)

    def _start(self, record: PassRecord) -> Candidate:
        """The whole graph before the pass, with weights drawn by name, or else those of the checkpoint."""
        limit = self._finding.event or 1
        before, after = run_again(record, limit - 1)[0] if limit > 1 else record.before, run_again(record, limit)[0]
        value, _ = worst_change(self.ladder.bench.study, before, after, record)
        events = run_again(record)[1].rows[0].events
        self._value = observable(record.before, after, value, events[limit - 1])
        whole = Candidate(record.before)
        for model in (None, self.ladder.model):
            self._model = model
            if self._still_fails(whole):
                self._save(whole)
                return whole
        raise TilewrightError("reduce", f"%{self._value} does not move on drawn inputs", f"use the repro of bisect: {self._finding}")

    # -- fewer ops ----------------------------------------------------------------------------------------------------------------
    def _drop_ops(self, best: Candidate) -> Candidate:
        """Down to the value, then chunk by chunk until no single op can go."""
        best = self._try(best, partial(without, best.graph, self._value, ()))
        progress = True
        while progress and not self._is_late:
            progress = False
            for chunk in chunks_of([op for op in best.graph.ops if not op.is_const]):
                present = [op for op in chunk if op in best.graph]
                smaller = self._try(best, partial(without, best.graph, self._value, present)) if present else best
                if smaller is not best:
                    best, progress = smaller, True
                    break
        return best

    # -- smaller sizes ------------------------------------------------------------------------------------------------------------
    def _shrink_sizes(self, best: Candidate) -> Candidate:
        for count in SMALL[:3]:
            smaller = replace(best, num_tokens=count)
            if self._still_fails(smaller):
                best = smaller
                break
        while (smaller := self._try(best, partial(resize, best.graph, halve))) is not best:
            best = smaller
        for old in sizes_of(best.graph):
            for new in (size for size in SMALL if size < old):
                smaller = self._try(best, partial(resize, best.graph, resize_one(old, new)))
                if smaller is not best:
                    best = smaller
                    break
        self._save(best)
        return best

    # -- one try ------------------------------------------------------------------------------------------------------------------
    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _try(self, best: Candidate, make: Callable[[], Graph]) -> Candidate:
        """The smaller candidate if it is smaller and still fails; then it is saved."""
        if self._is_late:
            return best
        try:
            smaller = Candidate(make(), best.num_tokens)
            smaller.graph.sort()
            verify(smaller.graph)
        except TilewrightError:
            return best
        size = (len(smaller.graph), num_elements(smaller.graph, smaller.num_tokens))
        if size >= (len(best.graph), num_elements(best.graph, best.num_tokens)) or not self._still_fails(smaller):
            return best
        self._save(smaller)
        return smaller

    def _still_fails(self, candidate: Candidate) -> bool:
        self.num_tries += 1
        try:
            wrong, allowed = measure(self._render(candidate))
        except Exception:  # whatever a pass or a reference says of a graph that no model has: it is another failure
            return False
        return wrong > allowed or isnan(wrong)

    def _render(self, candidate: Candidate) -> str:
        attempt = Attempt(candidate.graph, self._finding.event if len(candidate.graph) == len(self._whole) else None, self._model)
        return render("repro.py", str(replace(self._finding, repro=None)), self._step, self._value, self._tolerance, attempt, candidate.num_tokens)

    @property
    def _whole(self) -> Graph:
        assert self._finding.pass_number is not None
        return self.ladder.bench.run[self._finding.pass_number].before

    def _save(self, candidate: Candidate) -> Path:
        out = self.ladder.out
        out.mkdir(parents=True, exist_ok=True)
        (out / "best.ir").write_text(fold_text(candidate.graph), encoding="utf-8")
        (out / "repro.py").write_text(self._render(candidate), encoding="utf-8")
        return out / "repro.py"
