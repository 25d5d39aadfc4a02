"""Emits Triton that computes one tile of any value of a plan, given where the tile lies: operands first, each at the place that it is needed.

Serves rows kernels, prologues (a product's left operand at [row, k]) and epilogues (the template provides the accumulator's values).
Tiles of floats are f32. Knows neither grids nor how rows are dealt to programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tilewright.codegen.expressions import is_pointwise, triton_activation, triton_pointwise, triton_round
from tilewright.codegen.index import ZERO, At, Index, broadcast_at, join_masks, remainder, reshape_at, rows_of, shift_within, width_of
from tilewright.codegen.plan import KernelPlan, Parameter, PlanOp
from tilewright.codegen.writer import Writer
from tilewright.ir.errors import CodegenError
from tilewright.ir.types import FLOATS

Element = Callable[[At], str]


class RowReducer(Protocol):
    """How a row of some value is reduced to one number per row, an f32 tile [rows, 1]."""

    def reduce(self, writer: Writer, kind: str, row: Index, width: int, element: Element) -> str:
        """kind: sum or max. `element` emits the tile to reduce at a place in the row and gives its text."""
        ...


class WholeRow:
    """The tile holds the whole row: `column` gives the columns of a row of some width."""

    def __init__(self, column: Callable[[int], Index]) -> None:
        self._column = column

    def reduce(self, writer: Writer, kind: str, row: Index, width: int, element: Element) -> str:
        column = self._column(width)
        text = _masked(kind, element(At(row, column)), column)
        return writer.let(f"row_{kind}", f"tl.{kind}({text}, 1)[:, None]")


class LoopedRow:
    """Runs over the row in blocks of columns; the tile has `rows` rows."""

    def __init__(self, rows: int | str, block: int) -> None:
        self._rows, self._block = rows, block

    def reduce(self, writer: Writer, kind: str, row: Index, width: int, element: Element) -> str:
        partial = writer.fresh(f"row_{kind}")
        start_value = "0.0" if kind == "sum" else 'float("-inf")'
        writer.line(f"{partial} = tl.full([{self._rows}, {self._block}], {start_value}, tl.float32)")
        start = writer.fresh("start")
        with writer.block(f"for {start} in range(0, {width}, {self._block}):"):
            text = writer.let("k", f"{start} + tl.arange(0, {self._block})[None, :]")
            masks = () if width % self._block == 0 else (writer.let("k_inside", f"{text} < {width}"),)
            column = Index(text, masks)
            tile = _masked(kind, element(At(row, column)), column)
            writer.line(f"{partial} += {tile}" if kind == "sum" else f"{partial} = tl.maximum({partial}, {tile})")
        writer.line(f"{partial} = tl.{kind}({partial}, 1)[:, None]")
        return partial


def _masked(kind: str, text: str, column: Index) -> str:
    if not column.masks:
        return text
    neutral = "0.0" if kind == "sum" else 'float("-inf")'
    return f"tl.where({' & '.join(column.masks)}, {text}, {neutral})"


class Evaluator:
    """value(index, at) emits what is missing into the writer and returns the name of the tile; each (value, place) is computed once per block.

    notes: a comment for each op of the plan, set beside the line that makes its result.
    """

    def __init__(self, plan: KernelPlan, writer: Writer, reducer: RowReducer, notes: Sequence[str] = ()) -> None:
        self.plan, self.writer, self.reducer = plan, writer, reducer
        self.notes = tuple(notes) or ("",) * len(plan.ops)

    def provide(self, value: int, at: At, name: str) -> None:
        """The tile of a value is already there under a name (an accumulator, or one side of it after a split)."""
        self.writer.remember(_key(value, at), name)

    def value(self, value: int, at: At) -> str:
        known = self.writer.recall(_key(value, at))
        if known is not None:
            return known
        op = self.plan.producer(value)
        name = self.load(self.plan.carrier(value), at) if op is None else self._compute(op, at)
        return self.writer.remember(_key(value, at), name)

    def load(self, parameter: Parameter, at: At) -> str:
        """The tile of a tensor in memory: floats as f32, integers as they are."""
        text = f"tl.load({self.address(parameter, at)})"
        if parameter.type.dtype in FLOATS and parameter.type.dtype != "f32":
            text += ".to(tl.float32)"
        if parameter.role == "weight" and self.plan.type_of(parameter.value).encoding is not None:
            scale = self.plan.carrier(parameter.value, "scale")
            text = f"{text}.to(tl.float32) * tl.load({scale.name} + {at.row.text})"
        return self.writer.let(f"{parameter.name}_tile" if at.row.text != "0" or at.column.text != "0" else f"{parameter.name}_value", text)

    def address(self, parameter: Parameter, at: At, *, is_load: bool = True) -> str:
        """`pointer + row * width + column, mask=…`: the arguments of tl.load, or for a store without the value."""
        width = width_of(parameter.type)
        terms = [parameter.name]
        if at.row.text != "0":
            terms.append(at.row.text if width == 1 else f"{at.row.text} * {width}")
        if at.column.text != "0":
            terms.append(at.column.text)
        pointer, mask = " + ".join(terms), mask_text(at)
        if not mask or not is_load:
            return pointer
        return f"{pointer}, mask={mask}, other=0{'.0' if parameter.type.dtype in FLOATS else ''}"

    # -- ops ------------------------------------------------------------------------------------------------------------------
    def _compute(self, op: PlanOp, at: At) -> str:
        if op.op in _VIEWS:
            return _VIEWS[op.op](self, op, at)
        text = self._expression(op, at)
        note = self.notes[self.plan.ops.index(op)]
        if text.isidentifier():
            self.writer.comment_last(note)
            return text
        hint = f"row_{op.op}" if op.op in ("max", "sum", "mean") else f"{op.op}_value" if op.op in ("abs", "pow") else op.op
        return self.writer.let(hint, text, note)

    def _expression(self, op: PlanOp, at: At) -> str:
        if is_pointwise(op.op):
            types = [self.plan.type_of(v) for v in op.operands if v is not None]
            return triton_pointwise(op.op, [self._operand(op, i, at) for i in range(len(types))], dict(op.attrs), [*types, op.types[0]])
        if op.op not in _HANDLERS:
            raise CodegenError(f"kernel {self.plan.label}", f"{op.op} has no expression for Triton", "keep it out of fused regions or add a handler")
        return _HANDLERS[op.op](self, op, at)

    def _operand(self, op: PlanOp, position: int, at: At) -> str:
        """An operand broadcast to the result's shape."""
        value = op.operands[position]
        assert value is not None
        return self.value(value, broadcast_at(self.plan.type_of(value), op.types[0], at))

    def optional(self, op: PlanOp, position: int, at: At) -> str | None:
        present = position < len(op.operands) and op.operands[position] is not None
        return self._operand(op, position, at) if present else None

    def first(self, op: PlanOp) -> int:
        value = op.operands[0]
        assert value is not None
        return value

    def reduce(self, value: int, tag: str, kind: str, at: At, element: Element) -> str:
        """One number per row of a value, computed once per row tile."""
        key = ("reduce", value, tag, at.row.text)
        known = self.writer.recall(key)
        if known is not None:
            return known
        width = width_of(self.plan.type_of(value))
        assert isinstance(width, int)
        return self.writer.remember(key, self.reducer.reduce(self.writer, kind, at.row, width, element))


def mask_text(at: At) -> str:
    return " & ".join(join_masks(at.row, at.column))


def _key(value: int, at: At) -> tuple[str, int, str, str]:
    return ("value", value, at.row.text, at.column.text)


# -- views: no code, another place ----------------------------------------------------------------------------------------------
def _reshape(e: Evaluator, op: PlanOp, at: At) -> str:
    value = e.first(op)
    return e.value(value, reshape_at(e.plan.type_of(value), op.types[0], at))


def _slice(e: Evaluator, op: PlanOp, at: At) -> str:
    value = e.first(op)
    type_ = e.plan.type_of(value)
    start, step = op.attr("start"), op.attr("step")
    if op.attr("axis") not in (-1, type_.rank - 1):
        raise CodegenError(f"kernel {e.plan.label}", f"slice of axis {op.attr('axis')} of {type_}", "only the last axis can be sliced in a kernel")
    text = at.column.text if step == 1 else f"{at.column.text} * {step}"
    return e.value(value, at if (start, step) == (0, 1) else at.with_column(at.column.with_text(f"({text} + {start})")))


def _expand(e: Evaluator, op: PlanOp, at: At) -> str:
    return e._operand(op, 0, at)


_VIEWS: dict[str, Callable[[Evaluator, PlanOp, At], str]] = {"reshape": _reshape, "slice": _slice, "expand": _expand}


# -- the rest -------------------------------------------------------------------------------------------------------------------
def even_odd(at: At) -> tuple[At, At]:
    """Where `gated` with one operand reads: the columns 2c and 2c + 1 of its operand."""
    return tuple(at.with_column(at.column.with_text(f"(2 * {at.column.text}{end})")) for end in ("", " + 1"))  # type: ignore[return-value]


def _gated(e: Evaluator, op: PlanOp, at: At) -> str:
    if len(op.operands) > 1:
        gate, up = e._operand(op, 0, at), e._operand(op, 1, at)
    else:
        gate, up = (e.value(e.first(op), place) for place in even_odd(at))
    return f"{_parenthesized(triton_activation(str(op.attr('activation')), gate))} * {up}"


def rotary_partner(op: PlanOp, rotary_dim: int, at: At, writer: Writer) -> tuple[At, Index]:
    """Where `rotary` reads the other half of each pair, and the place of each column in its head."""
    head_dim = int(op.attr("head_dim"))  # type: ignore[arg-type]
    place = remainder(at.column, head_dim)
    if not place.text.isidentifier():
        place = Index(writer.let("place", place.text), place.masks)
    if op.attr("layout") == "interleaved":
        inner = f"({place.text} ^ 1)"
    else:
        half = rotary_dim // 2
        inner = f"tl.where({place.text} < {half}, {place.text} + {half}, {place.text} - {half})"
    if rotary_dim < head_dim:
        inner = f"tl.where({place.text} < {rotary_dim}, {inner}, {place.text})"
    return at.with_column(shift_within(at.column, head_dim, writer.let("partner", inner))), place


def _rotary(e: Evaluator, op: PlanOp, at: At) -> str:
    x_value, cos_value, sin_value = op.operands
    assert x_value is not None and cos_value is not None and sin_value is not None
    rotary_dim = width_of(e.plan.type_of(cos_value))
    assert isinstance(rotary_dim, int)
    partner_at, place = rotary_partner(op, rotary_dim, at, e.writer)
    head_dim = int(op.attr("head_dim"))  # type: ignore[arg-type]
    inside = e.writer.let("turns", f"{place.text} < {rotary_dim}") if rotary_dim < head_dim else ""
    table_at = At(at.row, Index(place.text, (*place.masks, *([inside] if inside else []))))
    x, partner = e.value(x_value, at), e.value(x_value, partner_at)
    cos, sin = e.value(cos_value, table_at), e.value(sin_value, table_at)
    low = f"{place.text} % 2 == 0" if op.attr("layout") == "interleaved" else f"{place.text} < {rotary_dim // 2}"
    text = f"{x} * {cos} + tl.where({low}, -{partner}, {partner}) * {sin}"
    return f"tl.where({inside}, {text}, {x})" if inside else text


def _rms_norm(e: Evaluator, op: PlanOp, at: At) -> str:
    value = e.first(op)
    type_ = op.types[0]

    def square(place: At) -> str:
        x = e.value(value, place)
        return f"{x} * {x}"

    total = e.reduce(value, "squares", "sum", at, square)
    factor = e.writer.let("inverse_rms", f"tl.rsqrt({total} / {width_of(type_)} + {op.attr('eps')!r})")
    text = f"{e.value(value, at)} * {factor}"
    weight = e.optional(op, 1, at)
    if weight is None:
        return text
    if op.attr("rounding") == "before_scale" and type_.dtype != "f32":
        text = triton_round(f"({text})", "f32", type_.dtype)
    offset = op.attr("offset")
    return f"{text} * {f'({weight} + {offset!r})' if offset else weight}"


def _layer_norm(e: Evaluator, op: PlanOp, at: At) -> str:
    value = e.first(op)
    width = width_of(op.types[0])
    total = e.reduce(value, "mean", "sum", at, lambda place: e.value(value, place))
    mean = e.writer.let("mean", f"{total} / {width}")

    def square(place: At) -> str:
        centered = e.writer.let("centered", f"{e.value(value, place)} - {mean}")
        return f"{centered} * {centered}"

    squares = e.reduce(value, "variance", "sum", at, square)
    factor = e.writer.let("inverse_std", f"tl.rsqrt({squares} / {width} + {op.attr('eps')!r})")
    text = f"({e.value(value, at)} - {mean}) * {factor}"
    weight, bias = e.optional(op, 1, at), e.optional(op, 2, at)
    return text + (f" * {weight}" if weight else "") + (f" + {bias}" if bias else "")


def _last_axis_only(e: Evaluator, op: PlanOp) -> None:
    rank = e.plan.type_of(e.first(op)).rank
    if op.attr("axis") not in (-1, rank - 1):
        raise CodegenError(f"kernel {e.plan.label}", f"{op.op} along axis {op.attr('axis')} of {rank}", "kernels reduce the last axis only")


def _reduction(e: Evaluator, op: PlanOp, at: At) -> str:
    """Result [..., 1], or [...] without keepdim: then its columns are the operand's rows."""
    _last_axis_only(e, op)
    value = e.first(op)
    if not op.attr("keepdim"):
        if e.plan.type_of(value).rank != 2:
            raise CodegenError(f"kernel {e.plan.label}", f"{op.op} of {e.plan.type_of(value)} without keepdim", "set keepdim=true")
        at = At(at.column, ZERO)
    kind = "max" if op.op == "max" else "sum"
    total = e.reduce(value, kind, kind, At(at.row, ZERO), lambda place: e.value(value, place))
    return f"{total} / {width_of(e.plan.type_of(value))}" if op.op == "mean" else total


def _softmax(e: Evaluator, op: PlanOp, at: At) -> str:
    _last_axis_only(e, op)
    value = e.first(op)
    top = e.reduce(value, "max", "max", at, lambda place: e.value(value, place))
    total = e.reduce(value, "exp", "sum", at, lambda place: f"tl.exp({e.value(value, place)} - {top})")
    return f"tl.exp({e.value(value, at)} - {top}) / {total}"


def _gather(e: Evaluator, op: PlanOp, at: At) -> str:
    """embedding(weight, ids) and gather_rows(x, rows): the same columns of another row."""
    source, ids = op.operands
    assert source is not None and ids is not None
    if e.plan.type_of(source).rank != 2:
        raise CodegenError(f"kernel {e.plan.label}", f"{op.op} from {e.plan.type_of(source)}", "kernels gather from tables [rows, width] only")
    row = e.value(ids, At(ZERO, at.row))
    picked = e.writer.let("picked", f"{row}.to(tl.int64)")
    return e.value(source, At(Index(picked, at.row.masks), at.column))


def _concat(e: Evaluator, op: PlanOp, at: At) -> str:
    if op.attr("axis") not in (-1, op.types[0].rank - 1):
        raise CodegenError(f"kernel {e.plan.label}", f"concat along axis {op.attr('axis')} of {op.types[0]}", "only the last axis can be joined")
    text, stop = "", 0
    for part in op.operands:
        assert part is not None
        width = int(width_of(e.plan.type_of(part)))
        inside = e.writer.let("inside", f"({at.column.text} >= {stop}) & ({at.column.text} < {stop + width})")
        column = Index(f"({at.column.text} - {stop})" if stop else at.column.text, (*at.column.masks, inside))
        tile = e.value(part, at.with_column(column))
        text = f"tl.where({inside}, {tile}, {text})" if text else tile
        stop += width
    return text


def _parenthesized(text: str) -> str:
    return f"({text})" if " " in text else text


_HANDLERS: dict[str, Callable[[Evaluator, PlanOp, At], str]] = {
    "gated": _gated, "rotary": _rotary, "rms_norm": _rms_norm, "layer_norm": _layer_norm, "mean": _reduction, "sum": _reduction,
    "max": _reduction, "softmax": _softmax, "embedding": _gather, "gather_rows": _gather, "concat": _concat,
}  # fmt: skip


def heads_in(plan: KernelPlan, value: int) -> int:
    """Narrow rows in each row of T: 32 for [T, 32, 128]."""
    return rows_of(plan.type_of(value))
