"""What every tensor of a run should be: each name's value from the first snapshot that has it, computed wide on reference inputs.

A name belongs to one tensor, so a later snapshot must agree whatever op computes it there. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilewright.ir.errors import RequestError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr
from tilewright.ir.reference import DTYPE_NAMES, REFERENCES, TORCH_DTYPES, Batch, QuantizedTensor, needs_batch
from tilewright.ir.types import FLOATS, Bounds
from tilewright.ir.weights import Weights

KEPT_CONSTANT_BYTES = 64 << 20  # constants above it are computed each time they are read
_ORDER = {"f16": 0, "bf16": 0, "f32": 1, "f64": 2}


@dataclass(frozen=True)
class Sample:
    """Prompts as one flattened step. Logits are wanted at every position: rows = 0 .. T - 1."""

    prompts: tuple[tuple[int, ...], ...]

    @staticmethod
    def random(lengths: Sequence[int], vocab: int, seed: int = 0) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        return Sample(tuple(tuple(torch.randint(0, vocab, (length,), generator=generator).tolist()) for length in lengths))

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def batch(self) -> Batch:
        return Batch.of_lengths([len(prompt) for prompt in self.prompts])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """ids i32[T], positions i32[T], rows i32[S = T]"""
        tokens = [token for prompt in self.prompts for token in prompt]
        positions = [position for prompt in self.prompts for position in range(len(prompt))]
        return {
            "ids": torch.tensor(tokens, dtype=torch.int32),
            "positions": torch.tensor(positions, dtype=torch.int32),
            "rows": torch.arange(len(tokens), dtype=torch.int32),
        }

    @property
    def dims(self) -> dict[str, int]:
        return {"T": self.num_tokens, "S": self.num_tokens}

    def locate(self, row: int) -> str:
        """`prompt 1, token 7`: what a row of T is."""
        starts = self.batch.starts
        index = max(i for i, start in enumerate(starts[:-1]) if start <= row)
        return f"prompt {index}, token {row - starts[index]}"


def loosen(graph: Graph, num_tokens: int) -> Graph:
    """A copy that takes a sample of any size, whatever steps the engine was built for."""
    twin = graph.copy()
    for name, bounds in twin.dims.items():
        twin.dims[name] = Bounds(bounds.low, max(bounds.high, num_tokens))
    return twin


def compute_dtype(graph: Graph) -> str:
    """The narrowest float of the parameters: what the engine computes in."""
    found = [value.type.dtype for value in graph.params.values() if value.type.dtype in FLOATS]
    return min(found, key=lambda name: _ORDER[name], default="f32")


class References:
    """`values[name]` is wide: f32 where the engine computes in 16 bits, else f64. Feed it snapshots in order with `learn`."""

    def __init__(self, sample: Sample, weights: Weights, dtype: str) -> None:
        if not sample.num_tokens:
            raise RequestError("check", "the prompts have no tokens", "pass at least one")
        self.sample, self.weights, self.dtype = sample, weights, dtype
        self.wide = torch.float64 if dtype in ("f32", "f64") else torch.float32
        self.batch, self.dims = sample.batch, sample.dims
        self.values: dict[str, Any] = dict(sample.inputs)
        self.makers: dict[str, Op] = {}  # the op that first made each tensor

    def learn(self, graph: Graph) -> None:
        """Takes in the tensors of a snapshot whose names are new."""
        for op in graph.ops:
            if all(value.name in self.makers for value in op.results):
                continue
            results = None if op.is_const else self.compute(op, wide=True)
            for value in op.results:
                if value.name not in self.makers:
                    self.makers[value.name] = op
                    if results is not None:
                        self.values[value.name] = results[value.index]

    def anew(self) -> References:
        """For the same sample and weights, with nothing learned."""
        return References(self.sample, self.weights, self.dtype)

    def fork(self) -> References:
        """The same so far; what either learns later, the other does not know."""
        twin = self.anew()
        twin.values, twin.makers = dict(self.values), dict(self.makers)
        return twin

    def of(self, value: Value) -> Any:
        """Wide: a tensor, a QuantizedTensor, or (k, v) of a kv."""
        if value.name in self.values:
            return self.values[value.name]
        if value.is_param:
            return self.widen(self.weights.load(value.name))
        maker = self.makers[value.name]
        results = self.compute(maker, wide=True)
        if _num_bytes(results) <= KEPT_CONSTANT_BYTES:
            self.values.update({made.name: result for made, result in zip(maker.results, results) if made.name not in self.values})
        return next(result for made, result in zip(maker.results, results) if made.name == value.name)

    def compute(self, op: Op, *, wide: bool = False, at_least: str | None = None) -> tuple[Any, ...]:
        """The op's results on its operands' reference values. wide: all floats wide; at_least: no float narrower; else as the graph has it."""
        operands = [None if v is None else self._prepare(v, wide, at_least) for v in op.operands]
        return self.run(op, operands, wide=wide, at_least=at_least)

    def run(self, op: Op, operands: Sequence[Any], *, wide: bool = False, at_least: str | None = None) -> tuple[Any, ...]:
        attrs = {key: self._bind(key, attr, wide, at_least) for key, attr in op.attrs.items()}
        leading = [self.batch] if needs_batch(op.name) else []
        with torch.no_grad():
            result = REFERENCES[op.name](*leading, *operands, **attrs)
        results = result if isinstance(result, tuple) and len(op.results) > 1 else (result,)
        return tuple(map(self.widen, results)) if wide else results

    def narrow(self, value: Value, at_least: str | None = None) -> Any:
        """The reference value rounded to the dtype that the graph declares, or to at_least if that is wider."""
        found = self.of(value)
        if isinstance(found, tuple):
            dtype = _kv_dtype(value)
            return tuple(part.to(TORCH_DTYPES[widest(dtype, at_least)]) for part in found)
        if isinstance(found, QuantizedTensor) or value.type.dtype not in FLOATS:
            return found
        return found.to(TORCH_DTYPES[widest(value.type.dtype, at_least)])

    def _prepare(self, value: Value, wide: bool, at_least: str | None) -> Any:
        return self.of(value) if wide else self.narrow(value, at_least)

    def _bind(self, key: str, attr: Attr, wide: bool, at_least: str | None) -> Any:
        if key == "dtype" and attr in FLOATS:
            return DTYPE_NAMES[self.wide] if wide else widest(str(attr), at_least)
        return tuple(self.dims.get(d, d) if isinstance(d, str) else d for d in attr) if isinstance(attr, tuple) else attr

    def widen(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(self.widen, result))
        return result.to(self.wide) if isinstance(result, Tensor) and result.is_floating_point() else result


def widest(dtype: str, other: str | None) -> str:
    return other if other is not None and _ORDER[other] > _ORDER[dtype] else dtype


def learn_all(references: References, snapshots: Iterable[Graph]) -> References:
    for graph in snapshots:
        references.learn(graph)
    return references


def _kv_dtype(value: Value) -> str:
    assert value.producer is not None, "state is made by an op"
    return value.producer.inputs[0].type.dtype


def _num_bytes(results: Sequence[Any]) -> int:
    tensors = [r.data if isinstance(r, QuantizedTensor) else r for r in results]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
