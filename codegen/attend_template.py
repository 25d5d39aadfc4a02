"""Attention over paged keys and values, as Triton text. Rows of a tile are the query heads that share a key-value head, times tokens.

decode: one token a sequence, its keys split among programs. ragged: tiles of tokens, found by binary search over query_start. Knows no layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tilewright.codegen.attend_keys import AttendShape, emit_attend_keys
from tilewright.codegen.emission import HEADER, Emission, KernelText, Workspace
from tilewright.codegen.evaluator import Evaluator, LoopedRow, mask_text
from tilewright.codegen.expressions import TRITON_DTYPES
from tilewright.codegen.index import ZERO, At, Index
from tilewright.codegen.linear_template import VIEWS, StoredEvaluator
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.source import template
from tilewright.codegen.tiles import AttendTile, choose_decode, choose_ragged, next_power_of_two, override
from tilewright.codegen.writer import Writer
from tilewright.ir.manifest import Extent
from tilewright.ir.types import ITEM_BYTES

_WORKSPACES = ("partial", "level")
_ONE = Extent()
# Names that the template gives; no parameter has one of them.
LOCALS = (
    "sequence", "head", "split", "tile", "beyond", "middle", "reached", "start", "stop", "length", "last", "row", "token", "first_token",
    "query_head", "position", "first_position", "query", "slope", "keys", "values", "table", "acc", "total", "highest", "first", "share", "begin",
    "end", "diagonal", "edge", "result", "part", "found", "split_weight", "averages", "average",
)  # fmt: skip


@template("attend", "triton")
def emit_attend(plan: KernelPlan, notes: Sequence[str] = ()) -> Emission:
    """One kernel, or with split keys two. config may set arch (90 by default), fields of AttendTile, and dependent_launch=1."""
    shape, config = AttendShape.of(plan), dict(plan.config)
    width, size, arch = max(shape.head_dim, shape.value_dim), ITEM_BYTES[shape.dtype], config.get("arch", 90)
    if plan.kind == "decode":
        programs, longest = plan.max_tokens * shape.kv_heads, shape.max_pages * shape.page_size
        tile = choose_decode(shape.group, width, size, programs, min(longest, shape.window or longest), arch)
    else:
        tokens = 0 if config.get("deterministic") else plan.max_tokens  # one tile for every step: rows then add up alike
        tile = choose_ragged(shape.group, width, size, tokens or 1 << 16, arch)
    early = bool(config.get("dependent_launch")) and arch >= 90
    maker = _Maker(plan, shape, override(tile, config), early, tuple(notes))
    return maker.emit_decode() if plan.kind == "decode" else maker.emit_ragged()


class _Maker:
    def __init__(self, plan: KernelPlan, shape: AttendShape, tile: AttendTile, early: bool, notes: tuple[str, ...]) -> None:
        self.plan, self.shape, self.tile, self.early, self.notes = plan, shape, tile, early, notes
        self.block_d = max(16, next_power_of_two(shape.head_dim))
        self.block_e = max(16, next_power_of_two(shape.value_dim))
        self.constants = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": self.block_d, "BLOCK_E": self.block_e}

    # -- decode -----------------------------------------------------------------------------------------------------------------
    def emit_decode(self) -> Emission:
        shape, splits = self.shape, self.tile.num_splits
        w = self._start()
        for axis, name in enumerate(("sequence", "head", "split")[: 2 + (splits > 1)]):
            w.line(f"{name} = tl.program_id({axis})")
        w.line("length = tl.load(context_len + sequence)")
        w.line("last = tl.maximum(length - 1, 0)")
        w.line("row = tl.arange(0, BLOCK_M)[:, None]")
        w.line("position = tl.zeros([BLOCK_M, 1], tl.int32) + last")
        w.line(f"query_head = head * {shape.group} + row")
        present = (w.let("present", f"row < {shape.group}"),) if shape.group != self.tile.block_m else ()
        self._wait(w)
        self._load_query(w, Index("sequence"), present)
        self._locate_pages(w)
        first = f"tl.maximum(length - {shape.window}, 0) // BLOCK_N" if shape.window else "0"
        if splits == 1:
            w.line(f"begin = {first} * BLOCK_N")
            w.line("end = length")
        else:
            w.line(f"first = {first}")
            w.line("share = tl.cdiv(tl.cdiv(length, BLOCK_N) - first, NUM_SPLITS)")
            w.line("begin = (first + split * share) * BLOCK_N")
            w.line("end = tl.minimum(begin + share * BLOCK_N, length)")
        self._attend(w, "begin", "end", masked=True)
        w.line("result = acc / tl.where(total > 0.0, total, 1.0)[:, None]")
        grid = (Extent(1, "B"), Extent(shape.kv_heads), Extent(splits))
        if splits == 1:
            self._write_outputs(w, "result", Index("sequence"), present)
            return Emission((self._kernel(self.plan.label, w, grid, self.constants),))
        self._write_partial(w, present)
        first_kernel = self._kernel(self.plan.label, w, grid, {**self.constants, "NUM_SPLITS": splits})
        spaces = (
            Workspace("partial", "f32", ("B", shape.heads, splits, shape.value_dim)),
            Workspace("level", "f32", ("B", shape.heads, splits)),
        )
        return Emission((first_kernel, self._emit_reduction()), spaces)

    def _write_partial(self, w: Writer, present: tuple[str, ...]) -> None:
        """Each split's own average, and log2 of its weight; -inf, and nothing else, from a split without keys."""
        shape = self.shape
        w.line(f"part = (sequence * {shape.heads} + query_head) * NUM_SPLITS + split")
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        mask = " & ".join((*present, *self._inside(w, "e", shape.value_dim, self.block_e), "(end > begin)"))
        w.line(f"tl.store(partial + part * {shape.value_dim} + e, result, mask={mask})")
        w.line('found = tl.where(total > 0.0, highest + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))')
        w.line(f"tl.store(level + part, found[:, None]{', mask=' + present[0] if present else ''})")

    def _emit_reduction(self) -> KernelText:
        """Combines the splits in a fixed order, so that a result does not depend on which program was first."""
        shape, splits = self.shape, self.tile.num_splits
        w = self._start()
        w.line("sequence = tl.program_id(0)")
        w.line("query_head = tl.program_id(1)")
        w.line("split = tl.arange(0, BLOCK_S)[:, None]")
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        self._wait(w)
        w.line(f"part = (sequence * {shape.heads} + query_head) * {splits}")
        w.line(f'found = tl.load(level + part + split, mask=split < {splits}, other=float("-inf"))')
        w.line("highest = tl.max(found, 0)[None, :]")
        w.line('split_weight = tl.where(found > float("-inf"), tl.exp2(found - highest), 0.0)')
        w.line(f"averages = partial + part * {shape.value_dim}")
        inside = f" & (e < {shape.value_dim})" if shape.value_dim != self.block_e else ""
        w.line(f"average = tl.load(averages + split * {shape.value_dim} + e, mask=(split_weight > 0.0){inside}, other=0.0)")
        w.line("total = tl.sum(split_weight, 0)[None, :]")
        w.line("result = tl.sum(average * split_weight, 0)[None, :] / tl.where(total > 0.0, total, 1.0)")
        self._write_outputs(w, "result", Index("sequence"), ())
        constants = {"BLOCK_S": next_power_of_two(splits), "BLOCK_E": self.block_e}
        text = self._kernel("reduce_splits", w, (Extent(1, "B"), Extent(shape.heads), _ONE), constants, has_loop=False)
        return text

    # -- ragged -----------------------------------------------------------------------------------------------------------------
    def emit_ragged(self) -> Emission:
        shape, tile = self.shape, self.tile
        tokens = tile.block_m // shape.group
        w = self._start()
        w.line("tile = tl.num_programs(0) - 1 - tl.program_id(0)", "the longest tiles first")
        w.line("head = tl.program_id(1)")
        self._find_sequence(w, tokens)
        w.line("start = tl.load(query_start + sequence)")
        w.line("stop = tl.load(query_start + sequence + 1)")
        w.line(f"first_token = start + (tile - start // {tokens} - sequence) * {tokens}")
        with w.block("if first_token >= stop:"):
            w.line("return")
        w.line("length = tl.load(context_len + sequence)")
        w.line("last = length - 1")
        w.line("row = tl.arange(0, BLOCK_M)[:, None]")
        w.line(f"token = first_token + row // {shape.group}")
        w.line(f"query_head = head * {shape.group} + row % {shape.group}")
        w.line("first_position = length - stop + first_token")
        w.line(f"position = first_position + row // {shape.group}")
        whole = f" & (row < {tokens * shape.group})" if tokens * shape.group != tile.block_m else ""
        present = (w.let("present", f"(token < stop){whole}"),)
        self._wait(w)
        self._load_query(w, Index("token"), present)
        self._locate_pages(w)
        w.line(f"end = tl.minimum(first_position + {tokens}, length)")
        self._attend_ragged(w, tokens)
        w.line("result = acc / total[:, None]")
        self._write_outputs(w, "result", Index("token"), present)
        grid = (Extent(1, "T", tokens, "B"), Extent(shape.kv_heads), _ONE)
        return Emission((self._kernel(self.plan.label, w, grid, self.constants),))

    def _find_sequence(self, w: Writer, tokens: int) -> None:
        """Sequence b owns the tiles from query_start[b] // tokens + b on: at least as many as it has tiles of tokens."""
        w.line("sequence = 0")
        w.line("beyond = B")
        with w.block("while beyond - sequence > 1:"):
            w.line("middle = (sequence + beyond) // 2")
            w.line(f"reached = tl.load(query_start + middle) // {tokens} + middle <= tile")
            w.line("sequence = tl.where(reached, middle, sequence)")
            w.line("beyond = tl.where(reached, beyond, middle)")

    def _attend_ragged(self, w: Writer, tokens: int) -> None:
        """Blocks that every row sees whole need no mask; those at the diagonal, and at the window's far edge, do."""
        w.line("diagonal = (first_position + 1) // BLOCK_N * BLOCK_N")
        if not self.shape.window:
            self._attend(w, "0", "diagonal", masked=False)
            self._attend(w, "diagonal", "end", masked=True, resume=True)
            return
        w.line(f"begin = tl.maximum(first_position + 1 - {self.shape.window}, 0) // BLOCK_N * BLOCK_N")
        w.line("diagonal = tl.maximum(diagonal, begin)")
        w.line(f"edge = tl.cdiv(tl.maximum(first_position + {tokens} - {self.shape.window}, 0), BLOCK_N) * BLOCK_N")
        w.line("edge = tl.minimum(tl.maximum(edge, begin), diagonal)")
        self._attend(w, "begin", "edge", masked=True)
        self._attend(w, "edge", "diagonal", masked=False, resume=True)
        self._attend(w, "diagonal", "end", masked=True, resume=True)

    # -- both -------------------------------------------------------------------------------------------------------------------
    def _start(self) -> Writer:
        names = [p.name for p in self.plan.parameters] + list(self.constants)
        return Writer([*names, *LOCALS, "B"])

    def _wait(self, w: Writer) -> None:
        if self.early:
            w.line("tl.extra.cuda.gdc_launch_dependents()")
            w.line("tl.extra.cuda.gdc_wait()")

    def _load_query(self, w: Writer, row: Index, present: tuple[str, ...]) -> None:
        """query: [BLOCK_M, BLOCK_D] in the dtype of the pages, and slope: [BLOCK_M] in powers of two."""
        shape, anchor = self.shape, self.plan.anchor_op
        w.let("d", "tl.arange(0, BLOCK_D)[None, :]")
        masks = (*present, *self._inside(w, "d", shape.head_dim, self.block_d))
        base = f"query_head * {shape.head_dim}"
        at = At(row, Index(f"({base} + d)", masks, base, Index("d", masks), shape.head_dim))
        value = anchor.operands[0] or 0
        is_plain = all(op.op in VIEWS for op in self.plan.cone(value))
        evaluator = StoredEvaluator if is_plain else Evaluator
        tile = evaluator(self.plan, w, LoopedRow("BLOCK_M", self.block_d), self.notes).value(value, at)
        w.line(f"query = {tile}" + ("" if is_plain or shape.dtype == "f32" else f".to({TRITON_DTYPES[shape.dtype]})"))
        if shape.has_slopes:
            slopes = Evaluator(self.plan, w, LoopedRow(1, 1), self.notes).value(anchor.operands[2] or 0, At(ZERO, Index("query_head", present)))
            w.line(f"slope = {slopes} * {math.log2(math.e)!r}")

    def _inside(self, w: Writer, name: str, size: int, block: int) -> tuple[str, ...]:
        return () if size == block else (w.let(f"{name}_inside", f"{name} < {size}"),)

    def _locate_pages(self, w: Writer) -> None:
        shape = self.shape
        w.line(f"keys = k_cache + head * {shape.page_size * shape.head_dim}")
        w.line(f"values = v_cache + head * {shape.page_size * shape.value_dim}")
        w.line(f"table = block_table + sequence * {shape.max_pages}")

    def _attend(self, w: Writer, begin: str, end: str, *, masked: bool, resume: bool = False) -> None:
        if not resume:
            w.line("acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)")
            w.line("total = tl.zeros([BLOCK_M], tl.float32)")
            w.line('highest = tl.full([BLOCK_M], float("-inf"), tl.float32)')
        slope = "slope, " if self.shape.has_slopes else ""
        arguments = f"query, acc, total, highest, keys, values, table, position, {slope}{begin}, {end}, last"
        w.line(f"acc, total, highest = attend_keys({arguments}, BLOCK_N, BLOCK_D, BLOCK_E, MASKED={masked})")

    def _write_outputs(self, w: Writer, tile: str, row: Index, present: tuple[str, ...]) -> None:
        """The outputs from result: f32[rows, BLOCK_E], through what the region computes from it."""
        shape = self.shape
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        masks = (*present, *self._inside(w, "e", shape.value_dim, self.block_e))
        base = f"query_head * {shape.value_dim}"
        at = At(row, Index(f"({base} + e)", masks, base, Index("e", masks), shape.value_dim))
        evaluator = Evaluator(self.plan, w, LoopedRow("BLOCK_M", self.block_e), self.notes)
        evaluator.provide(self.plan.anchor_op.result, at, tile)
        for output in self.plan.outputs:
            text, mask = evaluator.value(output.value, at), mask_text(at)
            w.line(f"tl.store({evaluator.address(output, at, is_load=False)}, {text}{f', mask={mask}' if mask else ''})")

    def _kernel(self, entry: str, w: Writer, grid: tuple[Extent, Extent, Extent], constants: dict[str, int], *, has_loop: bool = True) -> KernelText:
        """The parameters are those of the plan, the workspaces and the dims that the body names."""
        names = (*(p.name for p in self.plan.parameters), *_WORKSPACES, "B")
        used = set(re.findall(r"[A-Za-z_]\w*", w.text))
        parameters = tuple(name for name in names if name in used)
        signature = ", ".join([*parameters, *(f"{name}: tl.constexpr" for name in constants)])
        keys = f"\n\n{emit_attend_keys(self.shape, self.tile)}" if has_loop else ""
        source = f"{HEADER}{keys}\n\n@triton.jit\ndef {entry}({signature}):\n{w.text}"
        warps, stages = (self.tile.num_warps, self.tile.num_stages) if has_loop else (4, 1)
        return KernelText(entry, source, parameters, constants, warps, stages, grid, self.early)
