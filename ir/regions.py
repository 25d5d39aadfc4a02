"""The graph cut into kernels for one regime of T: what passes decide and code generation reads. Holds references into the graph, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilewright.ir.graph import Op, Value

# linear: one product with a prologue and an epilogue; attend: attention over pages; rows: pointwise, row reductions, gathers, scatters into pages.
Template = Literal["linear", "attend", "rows"]


@dataclass(frozen=True, slots=True)
class Regime:
    """Steps of 1..max_tokens tokens. decode: each sequence has one token; ragged: any mixture of prompt chunks and decodes."""

    name: str
    kind: Literal["decode", "ragged"]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Region:
    """Ops that become one kernel.

    Views (`reshape`, and `slice` of the last axis) cost nothing: they are part of every region that reads them, and may stand in several regions.
    `inputs` are what the region reads: graph inputs, constants, and outputs of earlier regions, never a view. `outputs` are what later regions,
    or the graph's result, need; a `kv` value among them has no bytes.
    """

    name: str  # unique in its schedule, after the main op's module: layers.0.self_attn.qkv
    template: Template
    ops: tuple[Op, ...]  # canonical order, views included
    anchor: Op  # the op that the template is about
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    reason: str  # why the cut is here

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m for op in self.ops for m in op.loc.modules))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an activation lives in the arena. Bytes hold for the regime's max_tokens."""

    value: Value
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Schedule:
    regime: Regime
    regions: tuple[Region, ...]  # in execution order
    placements: tuple[Placement, ...]  # one for each region output with bytes
    arena_bytes: int
