"""Errors of a run's graphs on the reference interpreter: of the logits after each pass, and of each value alone.

isolated: the value's op on reference inputs. floor: what the dtype costs that op anyhow. accumulated: the value as the whole graph gives it.
lossy: what passes with a declared budget, such as quantization, made of the value. Ops behind them are judged on what those passes meant to give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from tilewright.inspect.metrics import LogitsError, compare_logits, count_not_finite, relative_error
from tilewright.inspect.references import References, learn_all, loosen
from tilewright.inspect.run import PassRecord, Run
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import TORCH_DTYPES, QuantizedTensor
from tilewright.ir.types import FLOATS
from tilewright.passes.registry import PASSES

# Isolated errors above this many floors are no rounding; right graphs gave up to 2.4 in f32, 1.0 in 16 bits, where a percent is 3 to 6.
RED_RATIO, RED_RATIO_NARROW = 3.5, 2.5
NARROW = ("f16", "bf16")
Level = Literal["ok", "grey", "red"]


@dataclass(frozen=True, slots=True)
class OpError:
    """What an op adds on the reference's inputs."""

    isolated: float
    floor: float
    not_finite: int  # NaN and infinite elements that the reference has not
    lossy: float | None = None  # the same against the import, where the op does what a pass with a budget meant it to

    @property
    def ratio(self) -> float:
        return self.isolated / self.floor if isfinite(self.isolated) and not self.not_finite else float("inf")


@dataclass(frozen=True, slots=True)
class ValueRow:
    """One tensor of the final graph."""

    name: str  # with its sigil
    op: str
    modules: tuple[str, ...]
    isolated: float
    floor: float
    accumulated: float  # NaN for constants
    abs_max: float
    not_finite: int
    max_ratio: float = RED_RATIO  # to the floor; above it is red
    lossy: float | None = None  # error that passes with a declared budget added on purpose; apart from `isolated`
    budget: float | None = None  # what they may add

    @property
    def ratio(self) -> float:
        return self.isolated / self.floor

    @property
    def severity(self) -> float:
        """Above 1 is red."""
        if not isfinite(self.isolated) or self.not_finite:
            return float("inf")
        meant = self.lossy / self.budget if self.lossy is not None and self.budget else 0.0
        return max(self.ratio / self.max_ratio, meant)

    @property
    def level(self) -> Level:
        if self.severity > 1:
            return "red"
        return "grey" if self.lossy is not None else "ok"


@dataclass(frozen=True, slots=True)
class PassNumerics:
    """The graph after a pass (number 0: the import as it is) against the import in wide floats."""

    number: int
    name: str
    logits: LogitsError
    worst: ValueRow | None = None  # of the values that the pass made anew, if any
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """References for the values of a run, and the errors of its graphs against them. Errors of ops that stay are computed once.

    A pass with a declared budget changes what later ops are given and should give, so each of them has references of its own.
    """

    run: Run
    references: References
    lossy: tuple[References, ...]  # what the graph after each pass with a budget gives, wide
    budgets: Mapping[str, float]  # by rule
    expected: Tensor  # logits, wide
    _errors: dict[tuple[Any, ...], OpError] = field(default_factory=dict)

    @staticmethod
    def of(run: Run, references: References) -> Study:
        """Learns from every snapshot."""
        numbers, budgets = changed_numbers(run), find_budgets(run.passes)
        learn_all(references, map(run.graph, numbers))
        lossy = tuple(
            learn_all(references.anew(), (run.graph(later) for later in numbers if later >= number))
            for number in numbers if number and run[number].name in budgets
        )  # fmt: skip
        return Study(run, references, lossy, budgets, references.of(run.graph(0).outputs[0]))

    def fork(self, graph: Graph) -> Study:
        """For a graph that is no snapshot of the run, whose new names mean nothing elsewhere."""
        is_lossy = any(rule in self.budgets for op in graph.ops for rule in op.loc.rules)
        lossy = tuple(learn_all(references.fork(), [graph]) for references in self.lossy if is_lossy)
        return replace(self, references=learn_all(self.references.fork(), [graph]), lossy=lossy, _errors=dict(self._errors))

    # -- logits -------------------------------------------------------------------------------------------------------------------
    def logits(self, graph: Graph) -> Tensor:
        """As the graph computes them, in its own dtypes: [T, vocab]"""
        sample = self.references.sample
        return interpret(loosen(graph, sample.num_tokens), sample.inputs, self.references.weights, batch=sample.batch)[0]

    def logits_error(self, graph: Graph) -> LogitsError:
        return compare_logits(self.logits(graph), self.expected)

    def passes(self) -> list[PassNumerics]:
        """A row for the import and for each pass that changed something."""
        return [self.row_of(number) for number in changed_numbers(self.run)]

    def row_of(self, number: int) -> PassNumerics:
        graph, name = self.run.graph(number), self.run[number].name if number else "import"
        error = self.logits_error(graph)
        new = self._made_by(number)
        rows = [self.value_row(value) for op in graph.ops if signature(op) in new for value in op.results]
        worst = max(rows, key=lambda row: row.severity, default=None)
        warnings = (f"{error.nan} logits are NaN or infinite",) if error.nan else ()
        return PassNumerics(number, name, error, worst, warnings)

    def metrics(self, graph: Graph, *, values: bool) -> dict[str, float]:
        """By the names of METRICS; those of values only if asked for."""
        found = self.logits_error(graph).as_dict()
        if values:
            found |= value_metrics(self.value_row(value) for op in graph.ops for value in op.results)
        return found

    # -- values -------------------------------------------------------------------------------------------------------------------
    def values(self, graph: Graph) -> list[ValueRow]:
        accumulated = self._accumulated(graph)
        return [self.value_row(value, accumulated.get(value.name)) for op in graph.ops for value in op.results]

    def value_row(self, value: Value, accumulated: float | None = None) -> ValueRow:
        op = value.producer
        assert op is not None, "inputs and parameters have no error"
        error = self.error_of(value)
        budgets = [self.budgets[rule] for rule in op.loc.rules if rule in self.budgets] or list(self.budgets.values())
        biggest = plain(self.references.of(value))
        return ValueRow(
            value.display, op.name, op.loc.modules, error.isolated, error.floor, float("nan") if accumulated is None else accumulated,
            float(biggest.double().abs().max()) if biggest.numel() else 0.0, error.not_finite,
            RED_RATIO if value.type.dtype not in NARROW else RED_RATIO_NARROW, error.lossy, max(budgets) if error.lossy is not None else None,
        )  # fmt: skip

    def error_of(self, value: Value) -> OpError:
        assert value.producer is not None
        key = (*signature(value.producer), value.index)
        if key not in self._errors:
            self._errors[key] = self._measure(value)
        return self._errors[key]

    def error_against_import(self, value: Value) -> OpError:
        """What passes with a budget added counts as an error."""
        return measure_value(self.references, value)

    def _measure(self, value: Value) -> OpError:
        """Against the import; for what a pass with a budget made, or ops made of that, against what it meant where that explains the op better."""
        plainly = self.error_against_import(value)
        assert value.producer is not None
        if not any(rule in self.budgets for rule in value.producer.loc.rules):
            return plainly
        meant = [measure_value(references, value) for references in self.lossy if value.name in references.makers]
        best = min([plainly, *meant], key=lambda error: error.ratio)
        return best if best is plainly else replace(best, lossy=plainly.isolated)

    def _made_by(self, number: int) -> set[tuple[Any, ...]]:
        before = {signature(op) for op in self.run.graph(number - 1).ops} if number else set()
        return {signature(op) for op in self.run.graph(number).ops} - before

    def _accumulated(self, graph: Graph) -> dict[str, float]:
        errors: dict[str, float] = {}

        def observe(value: Value, result: Any) -> None:
            if not value.is_const:
                errors[value.name] = relative_error(plain(result), plain(self.references.of(value)))

        sample = self.references.sample
        interpret(loosen(graph, sample.num_tokens), sample.inputs, self.references.weights, batch=sample.batch, observe=observe)
        return errors


def measure_value(references: References, value: Value) -> OpError:
    """The floor is the larger of what the op that first made the tensor loses, and what this op loses without narrower floats inside."""
    op = value.producer
    assert op is not None
    expected = plain(references.of(value))
    found = plain(references.compute(op)[value.index])
    if found.shape != expected.shape:
        return OpError(float("inf"), smallest_floor(value), 0)
    maker = references.makers[value.name]
    index = next(v.index for v in maker.results if v.name == value.name)
    first = plain(references.compute(maker)[index])
    dtype = value.type.dtype if value.type.dtype in FLOATS else references.dtype
    own = relative_error(plain(references.compute(op, at_least=dtype)[value.index]), plain(references.compute(op, wide=True)[value.index]))
    floor = max(filter(isfinite, (relative_error(first, expected), own, smallest_floor(value))))
    return OpError(relative_error(found, expected), floor, max(0, count_not_finite(found) - count_not_finite(expected)))


def smallest_floor(value: Value) -> float:
    """A quarter of the dtype's step: about what rounding the result once costs."""
    dtype = value.type.dtype if value.type.dtype in FLOATS else "f32"
    return torch.finfo(TORCH_DTYPES[dtype]).eps / 4


def value_metrics(rows: Iterable[ValueRow]) -> dict[str, float]:
    rows = list(rows)
    worst = max(rows, key=lambda row: row.ratio, default=None)
    return {
        "isolated": worst.isolated if worst else 0.0,
        "ratio": worst.ratio if worst else 0.0,
        "red": float(sum(row.level == "red" for row in rows)),
    }


def find_budgets(passes: Iterable[PassRecord]) -> dict[str, float]:
    """What the rules of passes with a declared tolerance may add to a value."""
    found: dict[str, float] = {}
    for record in passes:
        info = PASSES.get(record.name)
        if info is not None and info.tolerance is not None:
            found |= {rule: info.tolerance for rule in (record.name, *(event.rule for event in record.events))}
    return found


def changed_numbers(run: Run) -> list[int]:
    """0 for the import, then the passes that changed the graph."""
    return [0, *(record.number for record in run.passes if record.status == "changed")]


def signature(op: Op) -> tuple[Any, ...]:
    """Equal for ops that compute the same tensors from the same ones."""
    operands = tuple(None if v is None else v.name for v in op.operands)
    return op.name, tuple(v.name for v in op.results), operands, tuple(sorted((k, str(v)) for k, v in op.attrs.items())), op.results[0].type


def plain(result: Any) -> Tensor:
    """What stands for a value in a comparison: dequantized weights, keys beside values."""
    if isinstance(result, QuantizedTensor):
        return result.dequantize(torch.float32)
    if isinstance(result, tuple):
        return torch.cat([part.double().flatten() for part in result])
    return result
