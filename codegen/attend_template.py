"""Attention over paged keys and values, as Triton text. Rows of a tile are the query heads that share a key-value head, times tokens.

decode: one token a sequence, its keys split among programs, the last of which puts the parts together; where the region writes the pages,
the newest key and value come from registers. ragged: tiles of tokens, found by binary search over query_start. Knows no layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tilewright.codegen.attend_keys import AttendShape, emit_attend_keys, emit_last_block, first_page, is_one_page, scale_scores, slope_argument
from tilewright.codegen.emission import HEADER, Emission, KernelText, Workspace
from tilewright.codegen.evaluator import Element, Evaluator, LoopedRow, WholeRow, mask_text
from tilewright.codegen.expressions import TRITON_DTYPES
from tilewright.codegen.index import ZERO, At, Index, widen
from tilewright.codegen.linear_product import VIEWS
from tilewright.codegen.linear_template import StoredEvaluator
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.source import template
from tilewright.codegen.tiles import AttendTile, choose_decode, choose_ragged, next_power_of_two, override
from tilewright.codegen.writer import Writer
from tilewright.ir.manifest import Extent
from tilewright.ir.types import ITEM_BYTES

_WORKSPACES = ("partial", "level", "counters")
_WIDEST_ROW = 4096  # elements of a row that is reduced as one tile
_COMBINED = 2048  # elements of the parts that each warp puts together at a time
_ALL_ROWS = 2**31 - 1  # of pages, as far as a descriptor can tell: what is read is always there
_ONE = Extent()
# Names that the template gives; no parameter has one of them.
LOCALS = (
    "sequence", "head", "split", "tile", "beyond", "middle", "reached", "start", "stop", "length", "last", "row", "token", "first_token",
    "query_head", "position", "first_position", "query", "slope", "keys", "values", "table", "acc", "total", "highest", "first", "share", "begin",
    "end", "diagonal", "edge", "result", "part", "found", "split_weight", "average", "page", "stored", "place", "tail_rows", "tail", "is_key",
    "tail_keys", "tail_values", "lane", "scores", "blocks", "wanted", "used", "newest", "slot", "new_key", "new_value", "counter", "arrived",
    "each", "member", "part_head", "combined", "top", "raised", "e3", "from_split", "places", "some", "split_mask", "level_tile", "weight_sum",
    "key_blocks", "value_blocks", "first_row", "shrink",
)  # fmt: skip


@template("attend", "triton")
def emit_attend(plan: KernelPlan, notes: Sequence[str] = ()) -> Emission:
    """One kernel. config may set arch (90 by default), fields of AttendTile, and dependent_launch=1."""
    shape, config = AttendShape.of(plan), dict(plan.config)
    width, size, arch = max(shape.head_dim, shape.value_dim), ITEM_BYTES[shape.dtype], config.get("arch", 90)
    if plan.kind == "decode":
        programs, longest = plan.max_tokens * shape.kv_heads, shape.max_pages * shape.page_size
        tile = choose_decode(shape.group, width, size, programs, min(longest, shape.window or longest), arch)
    else:
        tokens = 0 if config.get("deterministic") else plan.max_tokens  # one tile for every step: rows then add up alike
        tile = choose_ragged(shape.group, width, size, tokens or 1 << 16, arch)
    early = bool(config.get("dependent_launch")) and arch >= 90
    maker = _Maker(plan, shape, override(tile, config), arch, early, tuple(notes))
    return maker.emit_decode() if plan.kind == "decode" else maker.emit_ragged()


class _Maker:
    def __init__(self, plan: KernelPlan, shape: AttendShape, tile: AttendTile, arch: int, early: bool, notes: tuple[str, ...]) -> None:
        self.plan, self.shape, self.tile, self.arch, self.early, self.notes = plan, shape, tile, arch, early, notes
        self.block_d = max(16, next_power_of_two(shape.head_dim))
        self.block_e = max(16, next_power_of_two(shape.value_dim))
        self.constants = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": self.block_d, "BLOCK_E": self.block_e}

    # -- decode -----------------------------------------------------------------------------------------------------------------
    def emit_decode(self) -> Emission:
        shape, splits = self.shape, self.tile.most_splits
        w = self._start()
        w.line("sequence = tl.program_id(0)")
        w.line("head = tl.program_id(1)")
        w.line("length = tl.load(context_len + sequence)")
        w.line(f"stored = {'tl.maximum(length - 1, 0)' if shape.writes else 'length'}", "keys that are read from pages")
        w.line("last = tl.maximum(stored - 1, 0)")
        self._choose_keys(w)
        w.line("row = tl.arange(0, BLOCK_M)[:, None]")
        w.line("token = sequence + tl.zeros([BLOCK_M, 1], tl.int32)", "of every row: all tiles then have one layout")
        w.line("position = tl.zeros([BLOCK_M, 1], tl.int32) + tl.maximum(length - 1, 0)")
        w.line(f"query_head = head * {shape.group} + row")
        present = (w.let("present", f"row < {shape.group}"),) if shape.group != self.tile.block_m else ()
        self._locate_pages(w)
        w.line(f"page = {first_page(shape, self.tile, 'begin')}")
        w.line("tail = begin + tl.maximum(tl.cdiv(end - begin, BLOCK_N) - 1, 0) * BLOCK_N")
        w.let("d", "tl.arange(0, BLOCK_D)[None, :]")
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        if shape.writes:  # what earlier steps have written need not wait for the kernel before
            w.line("slot = tl.load(slots + token).to(tl.int64)")
            starts_next = splits > 1  # where programs are many, the kernel after this one finds no room sooner, and four must fit on a core
            self._let_next_start(w, starts_next)
            emit_last_block(w, shape, self.tile)
            self._let_next_start(w, not starts_next)
            self._wait(w)
            self._load_newest_value(w)
        else:
            self._let_next_start(w)
            self._wait(w)
        self._load_query(w, "token", present)
        if shape.writes:
            self._start_with_newest(w)
        else:
            emit_last_block(w, shape, self.tile)
            self._start_sums(w, lanes=True)
        sums, block = "acc, total, highest", "tail_keys, tail_values, tail + lane[None, :]"
        w.line(f"{sums} = attend_block(query, {sums}, {block}, position, {slope_argument(shape)}end, MASKED=True)")
        with w.block("if tail > begin:"):
            self._attend(w, "begin", "tail", masked=shape.window is not None)
        w.line("total = tl.sum(total, 1)")
        w.line("result = acc / tl.where(total > 0.0, total, 1.0)[:, None]")
        constants = self.constants if splits == 1 else {**self.constants, "NUM_SPLITS": splits}
        grid = (Extent(1, "B"), Extent(shape.kv_heads), Extent(splits))
        if splits == 1:
            self._write_outputs(w, "result", "sequence", "query_head", present)
            return Emission((self._kernel(self.plan.label, w, grid, constants, is_decode=True),))
        with w.block("if used == 1:"):
            self._write_outputs(w, "result", "sequence", "query_head", present)
        with w.block("else:"):
            self._write_partial(w, present)
            self._combine(w)
        spaces = (
            Workspace("partial", "f32", ("B", shape.heads, splits, shape.value_dim)),
            Workspace("level", "f32", ("B", shape.heads, splits)),
            Workspace("counters", "i32", ("B", shape.kv_heads), zeroed=True),
        )
        return Emission((self._kernel(self.plan.label, w, grid, constants, is_decode=True),), spaces)

    def _choose_keys(self, w: Writer) -> None:
        """begin and end of the program's keys. How many programs share a sequence depends on its length alone, not on the batch."""
        shape, tile = self.shape, self.tile
        first = f"tl.maximum(length - {shape.window}, 0) // BLOCK_N" if shape.window else "0"
        if tile.most_splits == 1:
            w.line(f"begin = {first} * BLOCK_N")
            w.line("end = stored")
            return
        w.line("split = NUM_SPLITS - 1 - tl.program_id(2)", "those without keys come first, and are gone before the others start")
        w.line(f"first = {first}")
        w.line("blocks = tl.cdiv(stored, BLOCK_N) - first")
        usual = f"tl.minimum(tl.cdiv(blocks, {tile.fill_blocks}), {tile.num_splits})"
        long = f"tl.minimum(tl.cdiv(blocks, {max(1, tile.long_keys // tile.block_n)}), NUM_SPLITS)"
        most = usual if tile.long_splits <= tile.num_splits else long if tile.num_splits == 1 else f"tl.maximum({usual}, {long})"
        w.line(f"wanted = tl.where(blocks <= {tile.alone_blocks}, 1, {most})")
        w.line("share = tl.maximum(tl.cdiv(blocks, tl.maximum(wanted, 1)), 1)")
        w.line("used = tl.maximum(tl.cdiv(blocks, share), 1)")
        with w.block("if split >= used:"):
            w.line("return")
        w.line("begin = (first + split * share) * BLOCK_N")
        w.line("end = tl.minimum(begin + share * BLOCK_N, stored)")

    def _load_newest_value(self, w: Writer) -> None:
        """Before the query is computed: what is loaded after that comes a round trip later."""
        alone = self.tile.most_splits == 1
        w.line(f"newest = {'length > 0' if alone else '(length > 0) & (split == used - 1)'}")
        self._make_newest(w, 1, "new_value", "e", self.shape.value_dim, self.block_e)

    def _make_newest(self, w: Writer, operand: int, name: str, lane: str, width: int, block: int) -> None:
        """name: [BLOCK_M, block] of the key (operand 0) or the value (1) that the region writes."""
        write = self.plan.producer(self.plan.anchor_op.operands[1] or 0)
        assert write is not None
        at = _of_head("token", "head", ("newest",), Index(lane, self._inside(w, lane, width, block)), width, self.shape.kv_heads)
        w.line(f"{name} = {self._stored(w, write.operands[operand] or 0, at)}")

    def _start_with_newest(self, w: Writer) -> None:
        """The last program of a sequence, whose share is the smallest, makes the newest key and value, writes them, and starts its softmax with them.

        Other programs read nothing of them. Every row has them, since the tile is then like the query's.
        """
        shape = self.shape
        self._make_newest(w, 0, "new_key", "d", shape.head_dim, self.block_d)
        columns = (("k", "new_key", "d", shape.head_dim, self.block_d), ("v", "new_value", "e", shape.value_dim, self.block_e))
        for cache, name, lane, width, block in columns:
            place = f"(slot // {shape.page_size} * {shape.kv_heads} + head) * {shape.page_size * width} + slot % {shape.page_size} * {width}"
            mask = " & ".join(("newest", "(slot >= 0)", "(row == 0)", *self._inside(w, lane, width, block)))
            w.line(f"tl.store({cache}_cache + {place} + {lane}, {name}, mask={mask})", "" if cache == "v" else "padding has slot -1")
        w.line("scores = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), 1)")
        scale_scores(w, shape)
        w.line('highest = tl.where(newest, scores, float("-inf"))')
        w.line("total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32) + tl.where(newest & (lane == 0), 1.0, 0.0)[None, :]")
        w.line("acc = new_value.to(tl.float32)", "0 where it is not read")

    def _write_partial(self, w: Writer, present: tuple[str, ...]) -> None:
        """Each split's own average, and log2 of its weight; -inf, and nothing else, from a split that has seen no key."""
        shape = self.shape
        w.line(f"part = (sequence * {shape.heads} + query_head) * NUM_SPLITS + split")
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        masks = (*present, *self._inside(w, "e", shape.value_dim, self.block_e))
        w.line(f"tl.store(partial + part * {shape.value_dim} + e, result{', mask=' + ' & '.join(masks) if masks else ''})")
        w.line('found = tl.where(total > 0.0, highest + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))')
        w.line(f"tl.store(level + part, found[:, None]{', mask=' + present[0] if present else ''})")

    def _combine(self, w: Writer) -> None:
        """The program that arrives last puts the parts together, in order of the splits, so that it does not matter which one it is.

        The barrier puts the stores of all threads before the one thread's atomic; `.cg` reads past what this core may have cached.
        """
        shape = self.shape
        w.line("tl.debug_barrier()")
        w.line(f"counter = counters + sequence * {shape.kv_heads} + head")
        w.line('arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")')
        with w.block("if arrived == used - 1:"):
            w.line("tl.store(counter, 0)")
            rows = max(1, min(next_power_of_two(shape.group), _COMBINED * self.tile.num_warps // (self._splits_at_once * self.block_e)))
            if rows >= shape.group:
                self._combine_rows(w, rows, "")
            else:
                with w.block(f"for each in range(0, {shape.group}, {rows}):"):
                    self._combine_rows(w, rows, "each + ")

    @property
    def _splits_at_once(self) -> int:
        """A thread has as many registers whatever the number of warps."""
        return max(4, 2 * self.tile.num_warps)

    def _combine_rows(self, w: Writer, rows: int, start: str) -> None:
        """combined: f32[rows, BLOCK_E] of a few query heads."""
        shape, width = self.shape, self.shape.value_dim
        w.line(f"member = {start}tl.arange(0, {rows})")
        w.line(f"part_head = (head * {shape.group} + member)[:, None]")
        inside = (w.let("member_inside", f"member < {shape.group}"),) if shape.group % rows else ()

        w.line(f"places = (sequence * {shape.heads} + head * {shape.group} + member[:, None]) * NUM_SPLITS")
        w.line(f'top = tl.full([{rows}], float("-inf"), tl.float32)')
        w.line("e3 = tl.arange(0, BLOCK_E)[None, None, :]")
        w.line(f"combined = tl.zeros([{rows}, BLOCK_E], tl.float32)")
        w.line(f"weight_sum = tl.zeros([{rows}], tl.float32)")
        with w.block(f"for some in range(0, used, {self._splits_at_once}):"):
            w.line(f"from_split = some + tl.arange(0, {self._splits_at_once})[None, :]")
            w.line(f"split_mask = {' & '.join(('(from_split < used)', *(f'{name}[:, None]' for name in inside)))}")
            w.line('level_tile = tl.load(level + places + from_split, mask=split_mask, other=float("-inf"), cache_modifier=".cg")')
            mask = "split_mask[:, :, None]" + (f" & (e3 < {width})" if width != self.block_e else "")
            w.line(f'average = tl.load(partial + (places + from_split)[:, :, None] * {width} + e3, mask={mask}, other=0.0, cache_modifier=".cg")')
            w.line("raised = tl.maximum(top, tl.max(level_tile, 1))")
            w.line('split_weight = tl.where(level_tile > float("-inf"), tl.exp2(level_tile - raised[:, None]), 0.0)')
            w.line('shrink = tl.where(top > float("-inf"), tl.exp2(top - raised), 0.0)')
            w.line("combined = combined * shrink[:, None] + tl.sum(average * split_weight[:, :, None], 1)")
            w.line("weight_sum = weight_sum * shrink + tl.sum(split_weight, 1)")
            w.line("top = raised")
        w.line("combined = combined / tl.where(weight_sum > 0.0, weight_sum, 1.0)[:, None]")
        self._write_outputs(w, "combined", "sequence", "part_head", tuple(w.let("part_inside", f"{name}[:, None]") for name in inside))

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
        self._let_next_start(w)
        self._wait(w)
        self._load_query(w, "token", present)
        self._locate_pages(w)
        if self.copies_blocks:
            self._describe_pages(w)
        self._start_sums(w, lanes=False)
        w.line(f"end = tl.minimum(first_position + {tokens}, length)")
        self._attend_ragged(w, tokens)
        w.line("result = acc / total[:, None]")
        self._write_outputs(w, "result", "token", "query_head", present)
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
            self._attend_from(w, "0", "diagonal", masked=False)
            self._attend_from(w, "diagonal", "end", masked=True)
            return
        w.line(f"begin = tl.maximum(first_position + 1 - {self.shape.window}, 0) // BLOCK_N * BLOCK_N")
        w.line("diagonal = tl.maximum(diagonal, begin)")
        w.line(f"edge = tl.cdiv(tl.maximum(first_position + {tokens} - {self.shape.window}, 0), BLOCK_N) * BLOCK_N")
        w.line("edge = tl.minimum(tl.maximum(edge, begin), diagonal)")
        self._attend_from(w, "begin", "edge", masked=True)
        self._attend_from(w, "edge", "diagonal", masked=False)
        self._attend_from(w, "diagonal", "end", masked=True)

    @property
    def copies_blocks(self) -> bool:
        """Whole blocks of keys come by the copy engine (sm_90 and later): its rows are multiples of 16 bytes, a block lies in one page."""
        shape, size = self.shape, ITEM_BYTES[self.shape.dtype]
        fits = all(width * size % 16 == 0 for width in (shape.head_dim, shape.value_dim))
        return self.plan.kind == "ragged" and self.arch >= 90 and size == 2 and fits and is_one_page(shape, self.tile)

    def _describe_pages(self, w: Writer) -> None:
        shape = self.shape
        for name, cache, width, block in (("key", "k", shape.head_dim, "BLOCK_D"), ("value", "v", shape.value_dim, "BLOCK_E")):
            w.line(f"{name}_blocks = tl.make_tensor_descriptor({cache}_cache, [{_ALL_ROWS}, {width}], [{width}, 1], [BLOCK_N, {block}])")
        w.line(f"first_row = head * {shape.page_size}")

    def _attend_from(self, w: Writer, begin: str, end: str, *, masked: bool) -> None:
        w.line(f"page = {first_page(self.shape, self.tile, begin)}")
        self._attend(w, begin, end, masked=masked)

    # -- both -------------------------------------------------------------------------------------------------------------------
    def _start(self) -> Writer:
        names = [p.name for p in self.plan.parameters] + list(self.constants)
        return Writer([*names, *LOCALS, "B"])

    def _let_next_start(self, w: Writer, here: bool = True) -> None:
        """In front of loads that are used before the wait: after them it would come when they have arrived."""
        if self.early and here:
            w.line("tl.extra.cuda.gdc_launch_dependents()")

    def _wait(self, w: Writer) -> None:
        """Above it stands what no kernel of this step has written."""
        if self.early:
            w.line("tl.extra.cuda.gdc_wait()")

    def _load_query(self, w: Writer, token: str, present: tuple[str, ...]) -> None:
        """query: [BLOCK_M, BLOCK_D] in the dtype of the pages, and slope: [BLOCK_M] in powers of two."""
        shape, anchor = self.shape, self.plan.anchor_op
        w.let("d", "tl.arange(0, BLOCK_D)[None, :]")
        column = Index("d", self._inside(w, "d", shape.head_dim, self.block_d))
        at = _of_head(token, "query_head", present, column, shape.head_dim, shape.heads)
        w.line(f"query = {self._stored(w, anchor.operands[0] or 0, at)}")
        if shape.has_slopes:
            slopes = self._evaluator(w).value(anchor.operands[2] or 0, At(ZERO, Index("query_head", present)))
            w.line(f"slope = {slopes} * {math.log2(math.e)!r}")

    def _stored(self, w: Writer, value: int, at: At) -> str:
        """The tile of a value in the dtype of the pages."""
        if all(op.op in VIEWS for op in self.plan.cone(value)) and self.plan.type_of(value).dtype == self.shape.dtype:
            return StoredEvaluator(self.plan, w, _RowsOfHeads(w), self.notes).value(value, at)
        tile = self._evaluator(w).value(value, at)
        return tile if self.shape.dtype == "f32" else f"{tile}.to({TRITON_DTYPES[self.shape.dtype]})"

    def _evaluator(self, w: Writer) -> Evaluator:
        return Evaluator(self.plan, w, _RowsOfHeads(w), self.notes)

    def _inside(self, w: Writer, name: str, size: int, block: int) -> tuple[str, ...]:
        return () if size == block else (w.let(f"{name}_inside", f"{name} < {size}"),)

    def _locate_pages(self, w: Writer) -> None:
        shape = self.shape
        w.line(f"keys = k_cache + head * {shape.page_size * shape.head_dim}")
        w.line(f"values = v_cache + head * {shape.page_size * shape.value_dim}")
        w.line(f"table = block_table + sequence * {shape.max_pages}")

    def _start_sums(self, w: Writer, *, lanes: bool) -> None:
        w.line("acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)")
        w.line(f"total = tl.zeros([BLOCK_M{', BLOCK_N' if lanes else ''}], tl.float32)")
        w.line('highest = tl.full([BLOCK_M], float("-inf"), tl.float32)')

    def _attend(self, w: Writer, begin: str, end: str, *, masked: bool) -> None:
        blocks = "key_blocks, value_blocks, first_row, " if self.copies_blocks else ""
        arguments = f"query, acc, total, highest, keys, values, {blocks}table, page, position, {slope_argument(self.shape)}{begin}, {end}, last"
        w.line(f"acc, total, highest = attend_keys({arguments}, BLOCK_N, BLOCK_D, BLOCK_E, MASKED={masked})")

    def _write_outputs(self, w: Writer, tile: str, token: str, head: str, present: tuple[str, ...]) -> None:
        """The outputs from a tile f32[rows, BLOCK_E] of the query heads `head`, through what the region computes from it."""
        shape = self.shape
        w.let("e", "tl.arange(0, BLOCK_E)[None, :]")
        column = Index("e", self._inside(w, "e", shape.value_dim, self.block_e))
        at = _of_head(token, head, present, column, shape.value_dim, shape.heads)
        evaluator = self._evaluator(w)
        evaluator.provide(self.plan.anchor_op.result, at, tile)
        for output in self.plan.outputs:
            text, mask = evaluator.value(output.value, at), mask_text(at)
            w.line(f"tl.store({evaluator.address(output, at, is_load=False)}, {text}{f', mask={mask}' if mask else ''})")

    def _kernel(
        self, entry: str, w: Writer, grid: tuple[Extent, Extent, Extent], constants: dict[str, int], *, is_decode: bool = False
    ) -> KernelText:
        """The parameters are those of the plan, the workspaces and the dims that the body names."""
        names = (*(p.name for p in self.plan.parameters), *_WORKSPACES, "B")
        used = set(re.findall(r"[A-Za-z_]\w*", w.text))
        parameters = tuple(name for name in names if name in used)
        signature = ", ".join([*parameters, *(f"{name}: tl.constexpr" for name in constants)])
        keys = emit_attend_keys(self.shape, self.tile, is_decode=is_decode, copies_blocks=self.copies_blocks)
        source = f"{HEADER}\n\n{keys}\n\n@triton.jit\ndef {entry}({signature}):\n{w.text}"
        return KernelText(entry, source, parameters, constants, self.tile.num_warps, self.tile.num_stages, grid, self.early)


class _RowsOfHeads:
    """Rows that are reduced are heads, or where they are wider, whole tokens: of one token in decode, so that the tile has one row."""

    def __init__(self, writer: Writer) -> None:
        self._whole = WholeRow(lambda width: self._column(writer, width))

    def reduce(self, writer: Writer, kind: str, row: Index, width: int, element: Element) -> str:
        reducer = self._whole if width <= _WIDEST_ROW else LoopedRow(1, _WIDEST_ROW)
        return reducer.reduce(writer, kind, row, width, element)

    def _column(self, writer: Writer, width: int) -> Index:
        block = next_power_of_two(width)
        column = writer.let("column", f"tl.arange(0, {block})[None, :]")
        return Index(column, () if width == block else (writer.let("inside", f"{column} < {width}"),))


def _of_head(token: str, head: str, masks: tuple[str, ...], column: Index, width: int, heads: int) -> At:
    """The columns of one head in rows of all heads of a token. masks: of the heads; what does not depend on the head is read without them."""
    if heads == 1:
        text, base = f"({head} * {width} + {column.text})", f"{head} * {width}"
        return At(Index(token), Index(text, (*masks, *column.masks), base, column, width))
    return widen(At(Index(f"({token} * {heads} + {head})", masks, parts=(heads, token, head)), column), width, heads)
