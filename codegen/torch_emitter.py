"""Plans as plain torch functions for the cpu target: one statement or a few per op, with the meaning of ir/reference.py to the letter.

Every template is served alike. Knows nothing of grids or tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.codegen.emission import Emission, KernelText
from tilewright.codegen.expressions import is_pointwise, literal, torch_activation, torch_pointwise
from tilewright.codegen.plan import KernelPlan, PlanOp
from tilewright.codegen.source import template
from tilewright.codegen.torch_attend import emit_attend, emit_write_kv
from tilewright.codegen.writer import Writer
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Extent
from tilewright.ir.types import Dim

_ONCE = (Extent(), Extent(), Extent())


@template("rows", "torch")
@template("linear", "torch")
@template("attend", "torch")
def emit_torch(plan: KernelPlan, notes: Sequence[str]) -> Emission:
    names = [p.name for p in plan.parameters]
    emitter = _TorchEmitter(plan, Writer([*names, "F", plan.name]), notes)
    for op in plan.ops:
        emitter.emit(op)
    for output in plan.outputs:
        emitter.writer.line(f"{output.name}.copy_({emitter.name_of(output.value)})")
    body = emitter.writer.text
    imports = "import torch\n" + ("import torch.nn.functional as F\n" if "F." in body else "")
    if "torch." not in body:
        imports = imports.replace("import torch\n", "")
    source = f"{imports}\n\ndef {plan.name}({', '.join(names)}):\n{body}".lstrip()
    return Emission((KernelText(plan.name, source, tuple(names), {}, 4, 3, _ONCE),))


class _TorchEmitter:
    """Gives every local value a name, emitting ops in order."""

    def __init__(self, plan: KernelPlan, writer: Writer, notes: Sequence[str]) -> None:
        self.plan, self.writer, self.notes = plan, writer, notes
        self.names: dict[int, str] = {p.value: p.name for p in plan.parameters if p.role in ("buffer", "weight", "step") and p.value >= 0}

    def name_of(self, value: int | None) -> str:
        return "None" if value is None else self.names[value]

    def emit(self, op: PlanOp) -> None:
        note = self.notes[self.plan.ops.index(op)]
        if op.op in _STATEFUL:
            self.names[op.result] = _STATEFUL[op.op](self, op, note)
            return
        operands = [self.name_of(v) for v in op.operands]
        if is_pointwise(op.op):
            types = [self.plan.type_of(v) for v in op.operands if v is not None]
            text = torch_pointwise(op.op, operands, dict(op.attrs), [*types, op.types[0]])
        elif op.op in _TEXTS:
            text = _TEXTS[op.op](self, op, operands)
        else:
            raise CodegenError(f"kernel {self.plan.label}", f"{op.op} has no torch text", "add it to codegen/torch_emitter.py")
        self.names[op.result] = self.writer.let(_hint(op), text, note)


def _hint(op: PlanOp) -> str:
    return f"{op.op}_" if op.op in ("max", "sum", "abs", "pow", "slice") else op.op


def _shape(shape: Sequence[Dim]) -> str:
    """A shape as arguments of reshape or expand; at most one symbol, which torch finds out."""
    return ", ".join("-1" if isinstance(d, str) else str(d) for d in shape)


# -- one expression each --------------------------------------------------------------------------------------------------------
Text = Callable[[_TorchEmitter, PlanOp, list[str]], str]


def _reshape(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]}.reshape({_shape(op.types[0].shape)})"


def _expand(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]}.expand({_shape(op.types[0].shape)})"


def _transpose(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]}.permute({op.attr('perm')})"


def _slice(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    rank, axis = op.types[0].rank, int(op.attr("axis"))  # type: ignore[arg-type]
    step = f":{op.attr('step')}" if op.attr("step") != 1 else ""
    before = "..., " if axis in (-1, rank - 1) else ":, " * (axis % rank)
    return f"{x[0]}[{before}{op.attr('start')}:{op.attr('stop')}{step}]"


def _concat(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"torch.cat([{', '.join(x)}], {op.attr('axis')})"


def _reduction(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    name = {"max": "amax"}.get(op.op, op.op)
    return f"{x[0]}.{name}({op.attr('axis')}, keepdim={op.attr('keepdim')})"


def _softmax(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]}.softmax({op.attr('axis')})"


def _gather(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]}.index_select(0, {x[1]})"


def _linear(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    weight = op.operands[1]
    assert weight is not None
    if e.plan.type_of(weight).encoding is not None:
        scale = e.plan.carrier(weight, "scale").name
        x = [x[0], e.writer.let("dense", f"({x[1]}.float() * {scale}.float()[:, None]).to({x[0]}.dtype)"), *x[2:]]
    return f"F.linear({', '.join(x)})"


def _matmul(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    return f"{x[0]} @ {x[1]}"


def _rms_norm(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    wide = e.writer.let("wide", f"{x[0]}.float()")
    h = e.writer.let("h", f"{wide} * torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {literal(op.attr('eps'))})")
    if len(x) < 2 or x[1] == "None":
        return f"{h}.to({x[0]}.dtype)"
    offset = op.attr("offset")
    if op.attr("rounding") == "before_scale":
        weight = f"({x[1]} + {literal(offset)})" if offset else x[1]
        return f"{h}.to({x[0]}.dtype) * {weight}"
    return f"({h} * ({x[1]}.float() + {literal(offset)})).to({x[0]}.dtype)"


def _layer_norm(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    weight, bias = [*x[1:], "None", "None"][:2]
    return f"F.layer_norm({x[0]}, ({op.types[0].shape[-1]},), {weight}, {bias}, {literal(op.attr('eps'))})"


def _rotary(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    let, table = e.writer.let, op.operands[1]
    assert table is not None
    head_dim, rotary_dim = int(op.attr("head_dim")), int(e.plan.type_of(table).shape[-1])  # type: ignore[arg-type]
    heads = let("heads", f"{x[0]}.unflatten(-1, (-1, {head_dim}))")
    turning = heads if rotary_dim == head_dim else let("turning", f"{heads}[..., :{rotary_dim}]")
    if op.attr("layout") == "half":
        half = rotary_dim // 2
        turned = let("turned", f"torch.cat([-{turning}[..., {half}:], {turning}[..., :{half}]], -1)")
    else:
        turned = let("turned", f"torch.stack([-{turning}[..., 1::2], {turning}[..., ::2]], -1).flatten(-2)")
    rotated = f"{turning} * {x[1]}[:, None] + {turned} * {x[2]}[:, None]"
    if rotary_dim == head_dim:
        return f"({rotated}).flatten(-2)"
    return f"torch.cat([{rotated}, {heads}[..., {rotary_dim}:]], -1).flatten(-2)"


def _gated(e: _TorchEmitter, op: PlanOp, x: list[str]) -> str:
    gate, up = x if len(x) > 1 else (f"{x[0]}[..., ::2]", f"{x[0]}[..., 1::2]")
    return f"{torch_activation(str(op.attr('activation')), gate)} * {up}"


_TEXTS: dict[str, Text] = {
    "reshape": _reshape, "expand": _expand, "transpose": _transpose, "slice": _slice, "concat": _concat, "mean": _reduction, "sum": _reduction,
    "max": _reduction, "softmax": _softmax, "embedding": _gather, "gather_rows": _gather, "linear": _linear, "matmul": _matmul,
    "rms_norm": _rms_norm, "layer_norm": _layer_norm, "rotary": _rotary, "gated": _gated,
}  # fmt: skip


# -- state ----------------------------------------------------------------------------------------------------------------------
def _write_kv(e: _TorchEmitter, op: PlanOp, note: str) -> str:
    emit_write_kv(e.plan, op, e.name_of(op.operands[0]), e.name_of(op.operands[1]), e.writer, note)
    return "None"


def _attend(e: _TorchEmitter, op: PlanOp, note: str) -> str:
    operands = [e.names.get(v, "") if v is not None else "None" for v in op.operands]
    return emit_attend(e.plan, op, operands, e.writer, note)


_STATEFUL: dict[str, Callable[[_TorchEmitter, PlanOp, str], str]] = {"write_kv": _write_kv, "attend": _attend}
