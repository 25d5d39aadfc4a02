"""Tensor types, dims and locations: descriptions compared by value. Knows nothing of graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from tilewright.ir.errors import GraphError

# Bytes of one element. `kv` is the opaque handle of a layer's paged state: it orders writes before reads and occupies nothing.
ITEM_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i8": 1, "i1": 1, "kv": 0}
FLOATS = ("f64", "f32", "bf16", "f16")

Dim = int | str  # a size, or the name of a symbol bounded by the graph: T tokens of a step, S rows whose logits are wanted


@dataclass(frozen=True, slots=True)
class Bounds:
    """Inclusive range of a symbol."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """How integers stand for numbers: w[n, k] = data[n, k] * scale[n] (group None), or scale[n, k // group]."""

    scale: str = "f32"
    group: int | None = None

    def __str__(self) -> str:
        fields = ([f"group={self.group}"] if self.group is not None else []) + [f"scale={self.scale}"]
        return "{" + ", ".join(fields) + "}"


@dataclass(frozen=True, slots=True)
class TensorType:
    dtype: str
    shape: tuple[Dim, ...]
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise GraphError("type", f"no dtype {self.dtype!r}", "use one of " + ", ".join(ITEM_BYTES))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def with_shape(self, *shape: Dim) -> TensorType:
        return TensorType(self.dtype, tuple(shape), self.encoding)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)

    def num_elements(self, dims: Mapping[str, int]) -> int:
        return prod(dims[d] if isinstance(d, str) else d for d in self.shape)

    def num_bytes(self, dims: Mapping[str, int]) -> int:
        """Bytes of the data and, where encoded, of its scales."""
        count = self.num_elements(dims)
        size = count * ITEM_BYTES[self.dtype]
        if self.encoding is None:
            return size
        per_scale = self.encoding.group or int(self.shape[-1])
        return size + count // per_scale * ITEM_BYTES[self.encoding.scale]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{self.encoding or ''}"


@dataclass(frozen=True, slots=True)
class Loc:
    """Where an op came from: HF module paths, `file.py:line`s, and the rules that made it, oldest first."""

    modules: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    def join(self, *others: Loc) -> Loc:
        """Union in order of first appearance: what a fused op inherits from the ops it replaced."""
        every = (self, *others)
        return Loc(*(tuple(dict.fromkeys(item for loc in every for item in getattr(loc, field))) for field in ("modules", "sources", "rules")))

    def made_by(self, rule: str) -> Loc:
        return self.join(Loc(rules=(rule,)))
