"""What a kernel is made from: a region without names of layers, compared by value. Equal layers give equal plans, so one kernel and many launches.

Knows the graph only in `make_plan`; holds no code.
"""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tilewright.ir.errors import CodegenError
from tilewright.ir.graph import Op, Value
from tilewright.ir.manifest import STEP_FIELDS, Arg, Limits
from tilewright.ir.opdef import Attr
from tilewright.ir.regions import Regime, Region, Template
from tilewright.ir.types import ITEM_BYTES, TensorType

Language = Literal["triton", "torch"]
_DTYPES = frozenset(ITEM_BYTES) - {"kv"}
# buffer: activation read; weight, scale: packed tensor and the scales of an encoded one; step: filled by the runtime; out: activation written.
Role = Literal["buffer", "weight", "scale", "step", "k_cache", "v_cache", "out"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the kernel. `value` is what it carries: for scales the weight that they scale, for pages the `kv` value, -1 for other state."""

    name: str
    role: Role
    type: TensorType
    value: int


@dataclass(frozen=True, slots=True)
class PlanOp:
    """An op over local values: 0..num_inputs-1 are the region's inputs, then the results of the ops in order."""

    op: str
    operands: tuple[int | None, ...]
    attrs: tuple[tuple[str, Attr], ...]  # declared order, all of them but `layer`
    types: tuple[TensorType, ...]  # of its results
    first: int  # local value of its first result

    def attr(self, name: str) -> Attr:
        return dict(self.attrs)[name]

    @property
    def result(self) -> int:
        return self.first


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """A region as code generation sees it. Source text is a pure function of it (and of the notes that stand in comments)."""

    label: str  # last word of the region's name: qkv
    language: Language
    template: Template
    kind: Literal["decode", "ragged", "any"]  # any: the code is the same for both
    max_tokens: int  # tokens of a step that the code is made for; 0: any number
    input_types: tuple[TensorType, ...]  # local values 0..num_inputs-1, `kv` among them
    parameters: tuple[Parameter, ...]  # inputs, state of the step, outputs
    ops: tuple[PlanOp, ...]
    anchor: int  # index in ops of the op that the template is about
    page_size: int  # tokens of a KV page; 0 where pages are not touched
    config: tuple[tuple[str, int], ...] = ()  # tile sizes that override the template's own choice

    def with_tile(self, move: Mapping[str, int]) -> KernelPlan:
        """The plan with these fields of its tile set."""
        return replace(self, config=(*self.config, *sorted(move.items())))

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.label}_{self.digest}"

    @property
    def num_inputs(self) -> int:
        return len(self.input_types)

    @property
    def inputs(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.role != "out")

    @property
    def outputs(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.role == "out")

    @property
    def anchor_op(self) -> PlanOp:
        return self.ops[self.anchor]

    def type_of(self, value: int) -> TensorType:
        if value < self.num_inputs:
            return self.input_types[value]
        op = self.ops[self.producer_index(value)]
        return op.types[value - op.first]

    def producer_index(self, value: int) -> int:
        """Index in `ops` of what produces a value that is no input."""
        return next(i for i, op in enumerate(self.ops) if op.first <= value < op.first + len(op.types))

    def producer(self, value: int) -> PlanOp | None:
        return None if value < self.num_inputs else self.ops[self.producer_index(value)]

    def parameter(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)

    def carrier(self, value: int, *roles: Role) -> Parameter:
        """The parameter of one of these roles (any of what can be read, by default) that carries a value."""
        wanted = roles or ("buffer", "weight", "step")
        return next(p for p in self.parameters if p.value == value and p.role in wanted)

    def users(self, value: int) -> list[PlanOp]:
        return [op for op in self.ops if value in op.operands]

    def cone(self, value: int) -> list[PlanOp]:
        """The ops of the region that a value depends on, in order."""
        needed = {value}
        for op in reversed(self.ops):
            if any(op.first + i in needed for i in range(len(op.types))):
                needed.update(v for v in op.operands if v is not None)
        return [op for op in self.ops if op.first in needed]


def make_plan(
    region: Region, regime: Regime, limits: Limits, target: str, config: tuple[tuple[str, int], ...] = ()
) -> tuple[KernelPlan, tuple[Arg, ...]]:
    """The plan of a region and what each of its parameters is bound to. target: cpu gives torch, anything else Triton."""
    maker = _PlanMaker(region, limits)
    language: Language = "torch" if target == "cpu" else "triton"
    tiled = language == "triton" and region.template != "rows"
    plan = KernelPlan(
        label=short_label(region.name), language=language, template=region.template,
        kind=regime.kind if region.template == "attend" else "any", max_tokens=regime.max_tokens if tiled else 0,
        input_types=tuple(v.type for v in maker.inputs), parameters=tuple(maker.parameters), ops=tuple(maker.ops),
        anchor=region.ops.index(region.anchor), page_size=limits.page_size if maker.touches_pages else 0, config=config,
    )  # fmt: skip
    return plan, tuple(maker.binding)


def short_label(region_name: str) -> str:
    """`layers.0.self_attn.qkv` -> `qkv`: the last word that is neither number nor dtype, as an identifier."""
    words = [w for w in region_name.split(".") if w and not w.isdigit() and w not in _DTYPES] or ["region"]
    label = re.sub(r"\W", "_", words[-1])
    return f"{label}_" if keyword.iskeyword(label) or label in ("tl", "triton", "torch") else label if not label[0].isdigit() else f"_{label}"


class _PlanMaker:
    """Numbers a region's values and names its parameters, in order of first use."""

    def __init__(self, region: Region, limits: Limits) -> None:
        self.region, self.page_size, self.max_pages = region, limits.page_size, limits.max_pages_per_sequence
        self.inputs: list[Value] = []
        self.parameters: list[Parameter] = []
        self.binding: list[Arg] = []
        self.ops: list[PlanOp] = []
        self.local: dict[Value, int] = {}
        self.touches_pages = False
        self._names: set[str] = set()
        self._add_inputs()
        self._add_ops()
        self._add_state()
        self._add_outputs()

    def _add_inputs(self) -> None:
        made = {value for op in self.region.ops for value in op.results}
        for op, position, value in self._reads():
            if value in made or value in self.local:
                continue
            if value not in self.region.inputs:
                raise CodegenError(f"region {self.region.name}", f"{op.name} reads {value.display}, which is neither made in it nor among its inputs")
            self.local[value] = len(self.inputs)
            self.inputs.append(value)
            self._add_input(value, op, position)

    def _reads(self) -> Iterator[tuple[Op, int, Value]]:
        return ((op, i, v) for op in self.region.ops for i, v in enumerate(op.operands) if v is not None)

    def _add_input(self, value: Value, op: Op, position: int) -> None:
        index = self.local[value]
        if value.type.dtype == "kv":
            return
        if value.producer is None and not value.is_const:
            self._add(value.name, "step", value.type, index, Arg("step", value.name))
            return
        name = self._read_as(value, op, position)
        if not value.is_const:
            self._add(name, "buffer", value.type, index, Arg("buffer", value.name))
            return
        taken = self._add(name, "weight", TensorType(value.type.dtype, value.type.shape), index, Arg("weight", value.name))
        if value.type.encoding is not None:
            scale = TensorType(value.type.encoding.scale, value.type.shape[:1])
            self._add(f"{taken}_scale", "scale", scale, index, Arg("weight", f"{value.name}.scale"))

    def _read_as(self, value: Value, op: Op, position: int) -> str:
        """The name under which the first op that is no view reads the value; constants beside the anchor say whose they are."""
        while op.name in ("reshape", "slice", "cast", "expand") and op is not self.region.anchor:
            user = next((u for u in self.region.ops if op.result in u.operands), None)
            if user is None:
                break
            position, op = user.operands.index(op.result), user
        word = op.definition.operands[min(position, len(op.definition.operands) - 1)]
        if value.is_const and op.name == "gather_rows":
            return "table"
        return f"{op.name}_{word}" if value.is_const and op is not self.region.anchor else word

    def _add_ops(self) -> None:
        count = len(self.inputs)
        for op in self.region.ops:
            for offset, value in enumerate(op.results):
                self.local[value] = count + offset
            operands = tuple(None if v is None else self.local[v] for v in op.operands)
            attrs = tuple((k, v) for k, v in op.attrs.items() if k != "layer")
            self.ops.append(PlanOp(op.name, operands, attrs, tuple(v.type for v in op.results), count))
            count += len(op.results)

    def _add_state(self) -> None:
        for op in self.region.ops:
            if op.name == "write_kv":
                self._add_step("slots")
                self._add_pages(op, op.result)
            elif op.name == "attend":
                for field in ("query_start", "context_len", "block_table"):
                    self._add_step(field)
                self._add_pages(op, op.inputs[1])

    def _add_step(self, name: str) -> None:
        if name not in self._names:
            dtype, symbols = STEP_FIELDS[name]
            shape = tuple(self.max_pages if d == "P" else d for d in symbols)
            self._add(name, "step", TensorType(dtype, shape), -1, Arg("step", name))

    def _add_pages(self, op: Op, kv: Value) -> None:
        heads, key_dim, value_dim = kv.type.shape
        stored = op.inputs[0].type.dtype  # of k in write_kv, of q in attend: the model's dtype either way
        layer = str(op.attrs["layer"])
        self.touches_pages = True
        if any(p.role == "k_cache" and p.value == self.local[kv] for p in self.parameters):
            return
        self._add("k_cache", "k_cache", TensorType(stored, ("pages", heads, self.page_size, key_dim)), self.local[kv], Arg("k_cache", layer))
        self._add("v_cache", "v_cache", TensorType(stored, ("pages", heads, self.page_size, value_dim)), self.local[kv], Arg("v_cache", layer))

    def _add_outputs(self) -> None:
        written = [v for v in self.region.outputs if v.type.dtype != "kv"]
        for value in sorted(written, key=lambda v: self.local[v]):
            producer = value.producer
            assert producer is not None, f"{value.display} is an output and nothing makes it"
            name = "out" if len(written) == 1 else f"out_{producer.name}"
            self._add(name, "out", value.type, self.local[value], Arg("buffer", value.name))

    def _add(self, name: str, role: Role, type_: TensorType, value: int, arg: Arg) -> str:
        unique, count = name, 2
        while unique in self._names:
            unique, count = f"{name}_{count}", count + 1
        self._names.add(unique)
        self.parameters.append(Parameter(unique, role, type_, value))
        self.binding.append(arg)
        return unique
