"""Triton for `rows` regions: pointwise chains, row reductions, gathers, rotary and writes into pages, all outputs in one launch.

A program has one token; its second index tells which part of the outputs it makes: some heads, or some columns of a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.codegen.emission import HEADER, Emission, KernelText
from tilewright.codegen.evaluator import Evaluator, LoopedRow, RowReducer, WholeRow, mask_text
from tilewright.codegen.index import ZERO, At, Index, widen, width_of
from tilewright.codegen.plan import KernelPlan, PlanOp
from tilewright.codegen.source import template
from tilewright.codegen.tiles import next_power_of_two
from tilewright.codegen.writer import Writer
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Extent
from tilewright.ir.types import TensorType

_REDUCTIONS = ("rms_norm", "layer_norm", "mean", "sum", "max", "softmax")
_WHOLE_ROW = 16384  # elements of the widest row that one tile holds
_LOOP_BLOCK = 4096  # elements at a time of rows that are wider
_TILE = 2048  # elements of a program where nothing binds the row together
_ELEMENTS_PER_WARP = 512


@dataclass(frozen=True, slots=True)
class Space:
    """Rows that outputs are made of: `count` rows of `width` elements for each token (or row asked for)."""

    count: int
    width: int
    reach: int  # elements of the widest row that something reduces; 0: nothing binds the elements together

    @property
    def is_looped(self) -> bool:
        return self.reach > _WHOLE_ROW

    @property
    def block(self) -> int:
        """Columns of a tile."""
        whole = next_power_of_two(self.width)
        if self.is_looped:
            return _LOOP_BLOCK
        return whole if self.reach or self.count > 1 else min(whole, _TILE)

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return max(1, min(next_power_of_two(self.count), _TILE // self.block))

    @property
    def parts(self) -> int:
        """Programs per token."""
        return -(-self.count // self.rows) * -(-self.width // self.block)

    @property
    def elements(self) -> int:
        return self.rows * max(self.block, next_power_of_two(min(self.reach, _LOOP_BLOCK if self.is_looped else _WHOLE_ROW)))


@dataclass(frozen=True, slots=True)
class Target:
    """A value to be stored: in an output, or as keys or values in pages (then `slot` is the write_kv op)."""

    name: str
    value: int
    type: TensorType
    write: PlanOp | None = None


@template("rows", "triton")
def emit_rows(plan: KernelPlan, notes: Sequence[str]) -> Emission:
    """One kernel, or one for the outputs with a row per token and one for those with a row per logit asked for."""
    groups: dict[str, dict[tuple[int, int], list[Target]]] = {}
    for target in _targets(plan):
        dim, count, width = _row_space(plan, target)
        groups.setdefault(dim, {}).setdefault((count, width), []).append(target)
    kernels = [_RowsKernel(plan, dim, spaces, notes).emit() for dim, spaces in groups.items()]
    return Emission(tuple(kernels))


def _targets(plan: KernelPlan) -> list[Target]:
    targets = [Target(p.name, p.value, p.type) for p in plan.outputs]
    for op in plan.ops:
        if op.op == "write_kv":
            for role, value in zip(("k_cache", "v_cache"), op.operands):
                assert value is not None
                targets.append(Target(plan.carrier(op.result, role).name, value, plan.type_of(value), op))  # type: ignore[arg-type]
    return targets


def _row_space(plan: KernelPlan, target: Target) -> tuple[str, int, int]:
    """(dim, rows per token, width): the narrowest rows that reductions, rotary or the pages deal with."""
    dim = next((d for d in target.type.shape if isinstance(d, str)), "")
    if not dim:
        raise CodegenError(f"kernel {plan.label}", f"{target.name} {target.type} does not depend on the step", "fold it into a constant")
    if target.type.rank == 1:
        return dim, 1, 1
    total = 1
    for size in target.type.shape:
        total *= size if isinstance(size, int) else 1
    widths = [w for op in plan.cone(target.value) if isinstance(w := _reduced_width(plan, op), int) and w <= total]
    if not widths:
        widths = [int(op.attr("head_dim")) for op in plan.cone(target.value) if op.op == "rotary"]  # type: ignore[arg-type]
    if target.write is not None and not any(_reduced_width(plan, op) == total for op in plan.cone(target.value)):
        _, key_dim, value_dim = target.write.types[0].shape
        widths.append(int(key_dim if target.value == target.write.operands[0] else value_dim))
    last = int(width_of(target.type))
    width = min([w for w in widths if last % w == 0], default=last)
    return dim, total // width, width


def _reduced_width(plan: KernelPlan, op: PlanOp) -> int | str | None:
    return width_of(plan.type_of(op.operands[0] or 0)) if op.op in _REDUCTIONS else None


class _RowsKernel:
    def __init__(self, plan: KernelPlan, dim: str, spaces: dict[tuple[int, int], list[Target]], notes: Sequence[str]) -> None:
        self.plan, self.dim = plan, dim
        self.spaces = [(self._space(count, width, targets), targets) for (count, width), targets in spaces.items()]
        self.early = bool(dict(plan.config).get("dependent_launch"))
        self.used = tuple(p.name for p in plan.parameters)
        self.w = Writer((*self.used, plan.label, "token", "part"))
        self.e = Evaluator(plan, self.w, WholeRow(self._whole_row), notes)

    def _space(self, count: int, width: int, targets: list[Target]) -> Space:
        reduced = [w for t in targets for op in self.plan.cone(t.value) if isinstance(w := _reduced_width(self.plan, op), int)]
        return Space(count, width, max(reduced, default=0))

    def emit(self) -> KernelText:
        w = self.w
        w.line("token = tl.program_id(0).to(tl.int64)")
        parts = sum(space.parts for space, _ in self.spaces)
        if parts > 1:
            w.line("part = tl.program_id(1)")
        first = 0
        for space, targets in self.spaces:
            if len(self.spaces) == 1:
                self._emit_space(space, targets, 0)
            else:
                test = f"part < {space.parts}" if first == 0 else f"(part >= {first}) & (part < {first + space.parts})"
                with w.block(f"if {test}:"):
                    self._emit_space(space, targets, first)
            first += space.parts
        if self.early:
            self._wait()
        entry = self.plan.label if self.dim == "T" else f"{self.plan.label}_{self.dim.lower()}"
        source = f"{HEADER}\n\n@triton.jit\ndef {entry}({', '.join(self.used)}):\n{w.text}"
        warps = max(1, min(16, max(next_power_of_two(space.elements) for space, _ in self.spaces) // _ELEMENTS_PER_WARP))
        grid = (Extent(1, self.dim, 1), Extent(parts), Extent())
        return KernelText(entry, source, self.used, {}, warps, 1, grid, self.early)

    def _wait(self) -> None:
        """What reads packed weights alone may run before the kernel before this one has ended, and stands above the wait."""
        known = {p.name for p in self.plan.inputs if p.role in ("weight", "scale")} | {"tl", "None", "mask", "other"}
        above: list[str] = []
        below: list[str] = []
        for line in self.w.lines:
            name, is_assignment, text = line.strip().partition(" = ")
            free = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", text.split("  # ")[0]))
            is_ready = bool(is_assignment) and name.isidentifier() and not line.startswith(" " * 5) and free <= known
            (above if is_ready else below).append(line)
            known |= {name} if is_ready else set()
        wait = ["    tl.extra.cuda.gdc_launch_dependents()", "    tl.extra.cuda.gdc_wait()"]
        self.w.lines[:] = [*above, *wait, *below]

    def _emit_space(self, space: Space, targets: list[Target], first: int) -> None:
        self.e.reducer = self._reducer(space)
        part = "part" if first == 0 else f"(part - {first})"
        narrow_row, column = self._heads(space, part), self._columns(space, part)
        for target in targets:
            self._store(target, space, narrow_row, column)

    def _reducer(self, space: Space) -> RowReducer:
        return LoopedRow(space.rows, _LOOP_BLOCK) if space.is_looped else WholeRow(self._whole_row)

    def _heads(self, space: Space, part: str) -> Index:
        """The rows of the tile among all narrow rows; knows its token, so that nothing is divided."""
        if space.count == 1:
            return Index("token")
        w = self.w
        step = "" if space.parts == 1 else f"{part} * {space.rows} + "
        head = w.let("head", f"{step}tl.arange(0, {space.rows})[:, None]")
        masks = () if space.count % space.rows == 0 else (w.let("head_inside", f"{head} < {space.count}"),)
        return Index(w.let("row", f"token * {space.count} + {head}"), masks, parts=(space.count, "token", head))

    def _columns(self, space: Space, part: str) -> Index:
        blocks = -(-space.width // space.block)
        return self._column(space.width, space.block, f"{part} * {space.block} + " if blocks > 1 else "")

    def _whole_row(self, width: int) -> Index:
        return self._column(width, next_power_of_two(width), "")

    def _column(self, width: int, block: int, start: str) -> Index:
        column = self.w.let("column", f"{start}tl.arange(0, {block})[None, :]")
        return Index(column, () if width % block == 0 else (self.w.let("inside", f"{column} < {width}"),))

    def _store(self, target: Target, space: Space, row: Index, column: Index) -> None:
        at = self._place(target.type, space, row, column)
        tile = self.e.value(target.value, at)
        if target.write is None:
            parameter = self.plan.parameter(target.name)
            pointer, masks = self.e.address(parameter, at, is_load=False), mask_text(At(row, column))
        else:
            pointer, masks = self._page_address(target, space, row, column)
        self.w.line(f"tl.store({pointer}, {tile}{f', mask={masks}' if masks else ''})")

    def _place(self, type_: TensorType, space: Space, row: Index, column: Index) -> At:
        """Where a tile of narrow rows lies in a value whose rows are as wide or wider."""
        if type_.rank == 1:
            return At(ZERO, Index("token"))
        wide = width_of(type_)
        assert isinstance(wide, int)
        if wide == space.width:
            return At(row, column)
        return widen(At(row, column), space.width, wide // space.width)

    def _page_address(self, target: Target, space: Space, row: Index, column: Index) -> tuple[str, str]:
        """k_cache[slot // page_size, head, slot % page_size, column]; padding rows have slot -1."""
        w, size = self.w, self.plan.page_size
        assert target.write is not None
        heads, key_dim, value_dim = target.write.types[0].shape
        width = key_dim if target.value == target.write.operands[0] else value_dim
        slot = w.let("slot", "tl.load(slots + token).to(tl.int64)")
        page, offset = w.let("page", f"{slot} // {size}"), w.let("offset", f"{slot} % {size}")
        if space.width == width:
            head = row.parts[2] if row.parts else "0"
            place = f"({page} * {heads} + {head}) * {size * int(width)} + {offset} * {width} + {column.text}"
        else:
            head, inner = f"{column.text} // {width}", f"{column.text} % {width}"
            place = f"({page} * {heads} + {head}) * {size * int(width)} + {offset} * {width} + {inner}"
        live = w.let("live", f"{slot} >= 0")
        masks = " & ".join([live, *row.masks, *column.masks])
        return f"{target.name} + {place}", masks
