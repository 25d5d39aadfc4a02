"""Matrix products with prologue and epilogue, as Triton text: y = epilogue(prologue(x) · Wᵀ), W [N, K], dequantized in registers where encoded.

One token: CUDA cores, one program for a few rows of W. More: tensor cores, W streamed through a pipeline, K dealt to several programs where
there are few tiles. Knows neither layers nor engines.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.codegen.emission import HEADER, Emission, KernelText, Workspace
from tilewright.codegen.evaluator import Evaluator, LoopedRow, WholeRow, even_odd, mask_text
from tilewright.codegen.expressions import TRITON_DTYPES
from tilewright.codegen.hoist import HoistingWriter
from tilewright.codegen.index import ZERO, At, Index, broadcast_at, width_of
from tilewright.codegen.linear_product import VIEWS, Product, tile_of
from tilewright.codegen.plan import KernelPlan, Parameter, PlanOp
from tilewright.codegen.source import template
from tilewright.codegen.tiles import LinearTile, next_power_of_two
from tilewright.codegen.word_weights import BLOCK, DTYPES, ORDER, WORDS, Arrangement, convert_words, join_all
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Extent
from tilewright.ir.types import ITEM_BYTES

# Names that the templates give; no parameter has one of them, since parameters are named after operands of ops and tensors of the step.
LOCALS = (
    "program", "first_m", "first_n", "m", "n", "n_row", "weight_rows", "step", "depth", "start", "ahead", "current", "bytes", "acc", "even", "odd",
    "x0", "x1", "x2", "x3", "x_sum", "tiles_m", "group", "group_size", "place", "k_probe", "part", "first_k", "pieces", "arrived", "total", "piece",
    "b0", "b1", "b2", "b3", "words", "weight_tile", "lane", "order",
)  # fmt: skip


@template("linear", "triton")
def emit_linear(plan: KernelPlan, notes: Sequence[str] = ()) -> Emission:
    """One kernel. config may set arch (90 by default), fields of LinearTile, and dependent_launch=1 (sm_90 and later)."""
    product, config = Product.of(plan), dict(plan.config)
    early = bool(config.get("dependent_launch")) and config.get("arch", 90) >= 90
    kernel = _Kernel(product, tile_of(product), early, tuple(notes))
    return Emission((kernel.emit(),), kernel.workspaces)


class StoredEvaluator(Evaluator):
    """Gives tensors in the dtype that they are stored in: for values that are only looked up."""

    def load(self, parameter: Parameter, at: At) -> str:
        return self.writer.let("x", f"tl.load({self.address(parameter, at)})")


class _Kernel:
    """Emits one function; every product tile is [BLOCK_M, BLOCK_N], BLOCK_M = 1 for the matrix-vector product."""

    def __init__(self, product: Product, tile: LinearTile, early: bool, notes: tuple[str, ...]) -> None:
        self.product, self.tile, self.early = product, tile, early
        self.steps = -(-product.k // tile.block_k)
        self.steps_of_part = -(-self.steps // max(1, tile.splits if self._is_bounded and not self.is_vector else 1))
        self.splits = -(-self.steps // self.steps_of_part)  # no program is left without a step
        of_plan, of_space = (tuple(p.name for p in items) for items in (product.plan.parameters, self.workspaces))
        self.parameters = (*of_plan, *of_space, *(() if self.is_vector else (product.rows,)))
        self.constants = {"BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
        if not self.is_vector:
            self.constants = {"BLOCK_M": tile.block_m, **self.constants, **({"GROUP_M": tile.group_m} if tile.group_m > 1 else {})}
        if self.splits > 1:
            self.constants["SPLITS"] = self.splits
        self.w = HoistingWriter((*self.parameters, *self.constants, *LOCALS))
        reducer = WholeRow(self._whole_row) if self.is_whole else LoopedRow(tile.block_m, tile.block_k)
        self.aheads = [self.w.fresh("ahead") for _ in range(tile.block_k // BLOCK)] if self.is_direct else []
        self.e = Evaluator(product.plan, self.w, reducer, notes)
        self.stored = StoredEvaluator(product.plan, self.w, reducer, notes)

    @property
    def is_vector(self) -> bool:
        return self.tile.block_m == 1

    @property
    def is_whole(self) -> bool:
        """One step does: the row of x is in registers, and read once for norms and product."""
        return self.is_vector and self.product.k <= self.tile.block_k

    @property
    def _is_bounded(self) -> bool:
        """No step has more rows than tiles were chosen for, so that their number is known."""
        return 0 < self.product.plan.max_tokens <= self.product.tokens

    @property
    def columns(self) -> int:
        """Tiles beside each other."""
        return -(-self.product.n // self.tile.block_n)

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """Where K is dealt to several programs: the tile of each, and for each tile how many of them are done."""
        if self.splits == 1:
            return ()
        tiles = self.columns * -(-self.product.tokens // self.tile.block_m)
        partial = Workspace("partial", "f32", (tiles, self.splits, self.tile.block_m * self.tile.block_n))
        return partial, Workspace("arrivals", "i32", (tiles,), zeroed=True)

    def emit(self) -> KernelText:
        plan, tile = self.product.plan, self.tile
        (self._emit_vector if self.is_vector else self._emit_tiled)()
        signature = ", ".join([*self.parameters, *(f"{name}: tl.constexpr" for name in self.constants)])
        source = f"{HEADER}\n\n@triton.jit\ndef {plan.label}({signature}):\n{self.w.text}"
        programs = Extent(self.columns) if self.is_vector else Extent(self.columns * self.splits, self.product.rows, tile.block_m)
        grid = (programs, Extent(), Extent())
        return KernelText(plan.label, source, self.parameters, self.constants, tile.num_warps, tile.num_stages, grid, self.early)

    # -- one token --------------------------------------------------------------------------------------------------------------
    def _emit_vector(self) -> None:
        w, k, tile = self.w, self.product.k, self.tile
        w.line("program = tl.program_id(0)")
        w.line("first_n = program * BLOCK_N")
        column = self._columns()
        self._locate_weight()
        w.line("depth = tl.arange(0, BLOCK_K)[None, :]")
        w.line(f"ahead = {self._weight_tile('', passes_end=k < tile.block_k)}")
        self._load_weights_early(ZERO, column)
        self._wait()
        if not self.is_whole:
            self._hoist_rows(ZERO)
        self._load_epilogue_early(ZERO, column)
        w.line(f"acc = tl.zeros([BLOCK_N, {self._in_words('BLOCK_K')}], tl.float32)")
        if self.is_biased:
            w.line(f"x_sum = tl.zeros([1, {self._in_words('BLOCK_K')}], tl.float32)")
        if self.is_whole:
            self._accumulate("ahead", self._at_k(ZERO))
        else:
            with w.block(f"for start in range(0, {k}, BLOCK_K):"):
                w.line("current = ahead")
                w.line("depth = start + tl.arange(0, BLOCK_K)[None, :]")
                w.line(f"ahead = {self._weight_tile('start + BLOCK_K', passes_end=True)}")
                self._accumulate("current", self._at_k(ZERO))
        bias = " - 128.0 * x_sum" if self.is_biased else ""
        w.line(f"acc = tl.sum(acc{bias}, 1)[None, :]")
        self._write_outputs(ZERO, column)

    def _whole_row(self, width: int) -> Index:
        """The columns of a row of x, or of another one that x is made of."""
        if width == self.product.k:
            return self._at_k(ZERO).column
        text = f"tl.arange(0, {next_power_of_two(width)})[None, :]"
        return Index(text, () if next_power_of_two(width) == width else (self.w.let("inside", f"{text} < {width}"),))

    @property
    def is_biased(self) -> bool:
        return self.is_vector and self.reads_words and self.tile.biased

    def _accumulate(self, tile: str, at: At) -> None:
        x, dtype = self.e.value(self.product.x, at), self.product.weight.type.dtype
        if self.reads_words:
            self._accumulate_words(tile, x)
        else:
            self.w.line(f"acc += {tile}{'' if dtype == 'f32' else '.to(tl.float32)'} * {x}")

    def _accumulate_words(self, tile: str, x: str) -> None:
        """Byte i of each word meets x at 4 j + i. Bytes stay in their places, so that x is scaled by 2 ** -8, … instead of them being shifted."""
        w = self.w
        w.line(f"even, odd = tl.split(tl.reshape({x}, [1, BLOCK_K // 2, 2]))")
        w.line("x0, x2 = tl.split(tl.reshape(even, [1, BLOCK_K // 4, 2]))")
        w.line("x1, x3 = tl.split(tl.reshape(odd, [1, BLOCK_K // 4, 2]))")
        if self.is_biased:
            w.line(f"bytes = {tile}.to(tl.uint32, bitcast=True) ^ 0x80808080", "each byte is weight + 128")
            for i in range(4):
                scaled = f"(x{i} * {2.0 ** (-8 * i)!r})" if i else "x0"
                w.line(f"acc += (bytes & {0xFF << 8 * i:#x}).to(tl.float32) * {scaled}")
            w.line("x_sum += (x0 + x1) + (x2 + x3)")
            return
        w.line(f"bytes = {tile}", "in the last bits of 2 ** 23 + 128 + weight, as f32")
        for i in range(4):
            place = 8 * (i % 2)
            if i == 2:
                w.line("bytes = bytes >> 16")
            bits = f"((bytes & {0xFF << place:#x}) ^ {0x4B000000 | 0x80 << place:#x}).to(tl.float32, bitcast=True)"
            w.line(f"acc += ({bits} - {float(2**23 + (128 << place))!r}) * {f'(x{i} * {2.0**-8!r})' if place else f'x{i}'}")

    # -- many tokens ------------------------------------------------------------------------------------------------------------
    def _emit_tiled(self) -> None:
        w = self.w
        self._deal_tiles()
        row, column = self._rows(), self._columns()
        self._locate_weight()
        first_k, stop = self._part_of_k()
        if self.is_direct:
            self._load_ahead(first_k, "")
        if self._has_one_row_of_tiles:  # larger tiles leave no registers for it
            self._load_weights_early(row, column)
        self._wait()
        self._hoist_rows(row)
        w.line(f"acc = tl.zeros([{self._tile_shape}], tl.float32)")
        if self.reads_words:
            w.line("lane = tl.arange(0, BLOCK_K)[None, :]")
            w.line(f"order = {ORDER}", "in which the tensor core meets the columns")
        with w.block(f"for start in range({first_k}, {stop}, BLOCK_K):"):
            in_order = "tl.max_contiguous(tl.multiple_of(start + order, [1, 2]), [1, 2])"
            w.line(f"depth = {in_order if self.reads_words else 'start + tl.arange(0, BLOCK_K)[None, :]'}")
            x = self._dot_operand(self._at_k(row))
            weight = self._dot_weight(stop)
            operands = f"{weight}, tl.trans({x})" if self.tile.weights_left else f"{x}, tl.trans({weight})"
            exact = ', input_precision="ieee"' if self.product.dtype == "f32" else ""
            w.line(f"acc = tl.dot({operands}, acc{exact})")
        if self.is_direct:
            w.line(f"acc = {self._arrangement.restore_rows('acc')}", "in the order of the weight again")
        if self.splits > 1:
            self._add_parts(row, column)
            return
        if self.tile.weights_left:
            w.line("acc = tl.trans(acc)")
        self._write_outputs(row, column)

    @property
    def _tile_shape(self) -> str:
        return "BLOCK_N, BLOCK_M" if self.tile.weights_left else "BLOCK_M, BLOCK_N"

    @property
    def _has_one_row_of_tiles(self) -> bool:
        """No other program reads the same part of the weight."""
        return 0 < self.product.plan.max_tokens <= self.tile.block_m

    def _part_of_k(self) -> tuple[str, str]:
        """Where the program's part of K starts and stops."""
        if self.splits == 1:
            return "0", str(self.product.k)
        stop = f"first_k + {self.steps_of_part * self.tile.block_k}"
        return "first_k", stop if self.steps % self.splits == 0 else f"tl.minimum({stop}, {self.product.k})"

    def _add_parts(self, row: Index, column: Index) -> None:
        """The last program of a tile to arrive adds up the parts, in their order whichever it is, and goes on with the sum."""
        w = self.w
        outer, inner = self._tile_shape.split(", ")
        w.line(f"place = tl.arange(0, {outer})[:, None] * {inner} + tl.arange(0, {inner})[None, :]")
        w.line("pieces = partial + program.to(tl.int64) * (SPLITS * BLOCK_M * BLOCK_N)")
        w.line("tl.store(pieces + part * (BLOCK_M * BLOCK_N) + place, acc)")
        w.line("tl.debug_barrier()", "one thread's release below covers the stores of all")
        w.line('arrived = tl.atomic_add(arrivals + program, 1, sem="acq_rel")')
        with w.block("if arrived == SPLITS - 1:"):
            w.line("tl.store(arrivals + program, 0)", "for the next launch")
            w.line(f"total = tl.zeros([{self._tile_shape}], tl.float32)")
            with w.block("for piece in tl.static_range(SPLITS):"):
                w.line('total += tl.load(pieces + piece * (BLOCK_M * BLOCK_N) + place, cache_modifier=".cg")')
            self._write_outputs(row, column, "tl.trans(total)" if self.tile.weights_left else "total")

    def _deal_tiles(self) -> None:
        """Which tile the program has: tokens fastest within a group of token tiles, so that a weight tile is read from memory once."""
        w, columns = self.w, self.columns
        if self.splits > 1:
            w.line("part = tl.program_id(0) % SPLITS")
            w.line("program = tl.program_id(0) // SPLITS")
            w.line(f"first_k = part * {self.steps_of_part * self.tile.block_k}")
        else:
            w.line("program = tl.program_id(0)")
        if self._has_one_row_of_tiles:
            w.line("first_m = 0")
            w.line("first_n = program * BLOCK_N")
            return
        if self.tile.group_m == 1:
            w.line(f"tiles_m = tl.cdiv({self.product.rows}, BLOCK_M)")
            w.line("first_m = program % tiles_m * BLOCK_M")
            w.line("first_n = program // tiles_m * BLOCK_N")
            return
        w.line(f"tiles_m = tl.cdiv({self.product.rows}, BLOCK_M)")
        w.line(f"group = program // (GROUP_M * {columns}) * GROUP_M")
        w.line("group_size = tl.minimum(tiles_m - group, GROUP_M)")
        w.line(f"place = program % (GROUP_M * {columns})")
        w.line("first_m = (group + place % group_size) * BLOCK_M")
        w.line("first_n = place // group_size * BLOCK_N")

    def _rows(self) -> Index:
        wide = ".to(tl.int64)" if self._needs_wide_rows() else ""
        self.w.line(f"m = (first_m + tl.arange(0, BLOCK_M)[:, None]){wide}")
        return Index("m", (self.w.let("m_inside", f"m < {self.product.rows}"),))

    def _needs_wide_rows(self) -> bool:
        plan = self.product.plan
        widest = max(int(w) for p in plan.parameters if isinstance(w := width_of(p.type), int))
        return (plan.max_tokens or 1 << 20) * widest >= 1 << 31

    def _dot_operand(self, at: At) -> str:
        if self.product.is_plain:
            return self.stored.value(self.product.x, at)
        x = self.e.value(self.product.x, at)
        masks = [m for m in at.column.masks]
        if masks:
            x = f"tl.where({' & '.join(masks)}, {x}, 0.0)"
        return self.w.let("x", x if self.product.dtype == "f32" else f"({x}).to({TRITON_DTYPES[self.product.dtype]})")

    def _dot_weight(self, stop: str) -> str:
        """stop: of the program's part of K."""
        w, dtype = self.w, self.product.dtype
        tile = self._weight_tile("start", passes_end=self.product.k % self.tile.block_k != 0)
        if not self.reads_words:
            w.line(f"weight_tile = {tile}")
            return "weight_tile" if self.product.weight.type.dtype == dtype else f"weight_tile.to({TRITON_DTYPES[dtype]})"
        w.line(f"words = {join_all(self.aheads) if self.is_direct else tile}")
        if self.is_direct:
            self._load_ahead("start + BLOCK_K", stop)
        for line in convert_words("words", dtype, TRITON_DTYPES[dtype], self._arrangement):
            w.line(line)
        return "weight_tile"

    @property
    def is_direct(self) -> bool:
        """Words come from memory to where they are needed, in as many loads of a block of columns as a step has."""
        tile = self.tile
        return self.reads_words and not self.is_vector and tile.direct and tile.block_n % (16 * tile.num_warps) == 0

    @property
    def _arrangement(self) -> Arrangement:
        return Arrangement(self.tile.block_n, self.tile.block_k // BLOCK, self.tile.num_warps, self.is_direct)

    def _load_ahead(self, start: str, stop: str) -> None:
        """The words of the step at column `start`, unless that is at `stop`."""
        product = self.product
        once = ', eviction_policy="evict_first"' if self._has_one_row_of_tiles else ""
        for place, name in enumerate(self.aheads):
            first = f"({start}) // 4" + (f" + {place * WORDS}" if place else "")
            masks = [f"n_row < {product.n}"] if product.n % self.tile.block_n else []
            masks += [f"{first} + tl.arange(0, {WORDS})[None, :] < {product.k // 4}"] if product.k % self.tile.block_k else []
            masks += [f"{start} < {stop}"] if stop else []
            masked = f", mask={' & '.join(f'({m})' for m in masks)}, other=0" if masks else ""
            self.w.line(f"{name} = tl.load(weight_rows + {first} + step{masked}{once})")

    # -- both -------------------------------------------------------------------------------------------------------------------
    def _columns(self) -> Index:
        w = self.w
        w.line("n = first_n + tl.arange(0, BLOCK_N)[None, :]")
        if self.product.n % self.tile.block_n == 0:
            return Index("n")
        w.line("n_row = first_n + tl.arange(0, BLOCK_N)[:, None]")
        return Index("n", (w.let("n_inside", f"n < {self.product.n}"),))

    @property
    def reads_words(self) -> bool:
        """int8 is read four to a 32-bit word, and taken apart in registers: bytes would be moved through shared memory to where they are needed."""
        product, tile = self.product, self.tile
        if product.weight.type.dtype != "i8" or product.k % 4 != 0:
            return False
        is_wgmma = dict(product.plan.config).get("arch", 90) == 90 and tile.num_warps % 4 == 0 and tile.block_n % 64 == 0
        return self.is_vector or (is_wgmma and tile.weights_left and tile.block_k % BLOCK == 0 and product.dtype in DTYPES)

    def _in_words(self, count: str) -> str:
        return f"{count} // 4" if self.reads_words else count

    def _locate_weight(self) -> None:
        k, name = self.product.k, self.product.weight.name
        items = k // 4 if self.reads_words else k
        pointer = f"{name}.to(tl.pointer_type(tl.int32))" if self.reads_words else name
        self.w.line(f"weight_rows = {pointer} + first_n.to(tl.int64) * {items}")
        width = WORDS if self.is_direct else self._in_words("BLOCK_K")
        self.w.line(f"step = tl.arange(0, BLOCK_N)[:, None] * {items} + tl.arange(0, {width})[None, :]")
        if self.reads_words and self.is_vector:
            words = 16 // ITEM_BYTES[self.product.dtype] // 4
            self.w.line(f"step = tl.max_contiguous(step, [1, {words}])", "a thread reads the columns that it has of x")

    def _weight_tile(self, start: str, *, passes_end: bool) -> str:
        """The tile of the weight from column `start` on. passes_end: columns behind the last are masked out, perhaps all."""
        product = self.product
        first = f"({start}) // 4" if start and self.reads_words else start
        masks = [f"n_row < {product.n}"] if product.n % self.tile.block_n else []
        if passes_end:
            lane = f"tl.arange(0, {self._in_words('BLOCK_K')})[None, :]"
            masks.append(f"{first + ' + ' if first else ''}{lane} < {product.k // 4 if self.reads_words else product.k}")
        masked = f", mask={' & '.join(f'({m})' for m in masks)}, other=0" if masks else ""
        once = ', eviction_policy="evict_first"' if self.is_vector or self._has_one_row_of_tiles else ""
        return f"tl.load(weight_rows + {first + ' + ' if first else ''}step{masked}{once})"

    def _at_k(self, row: Index) -> At:
        k = self.product.k
        return At(row, Index("depth", () if k % self.tile.block_k == 0 else (self.w.let("depth_inside", f"depth < {k}"),)))

    def _wait(self) -> None:
        """Everything above it may run before the kernel before this one has ended."""
        if self.early:
            self.w.line("tl.extra.cuda.gdc_launch_dependents()")
            self.w.line("tl.extra.cuda.gdc_wait()")

    def _hoist_rows(self, row: Index) -> None:
        """What the prologue needs once per row (norms) is computed before the loop over K."""
        if not self.product.is_plain:
            with self.w.hoisting("k_probe"):
                self.e.value(self.product.x, At(row, Index("k_probe")))

    def _load_weights_early(self, row: Index, column: Index) -> None:
        """Scales, biases and weights of norms: no kernel writes them, and they come from memory, not from the L2 cache."""
        product = self.product
        if product.scale is not None:
            self.e.load(product.scale, At(ZERO, column))
        if product.bias is not None and self._is_vector_of_weights(product.bias):
            self.e.value(product.bias, At(ZERO, column))
        cone = product.plan.cone(product.x) if self.is_whole else []
        along_x = [(op, self._at_k(ZERO)) for op in cone if op.op not in VIEWS and op.types[0].rank == 2 and width_of(op.types[0]) == product.k]
        for op, at in (*along_x, *self._epilogue(row, column)):
            for value in (v for v in op.operands if v is not None and self._is_vector_of_weights(v)):
                self.e.value(value, broadcast_at(product.plan.type_of(value), op.types[0], at))

    def _is_vector_of_weights(self, value: int) -> bool:
        plan = self.product.plan
        return plan.producer(value) is None and plan.type_of(value).rank == 1 and plan.carrier(value).role == "weight"

    def _load_epilogue_early(self, row: Index, column: Index) -> None:
        """Operands of the epilogue are on their way while the weight streams."""
        for op, at in self._epilogue(row, column):
            for value in (v for v in op.operands if v is not None and v not in self.product.after):
                self.e.value(value, broadcast_at(self.product.plan.type_of(value), op.types[0], at))

    def _epilogue(self, row: Index, column: Index) -> list[tuple[PlanOp, At]]:
        """What works on the product's elements after it, each with the place of those that this program has."""
        product, (whole, half) = self.product, self._places(row, column)
        after = [op for op in product.plan.ops if op.result in product.after and op is not product.plan.anchor_op and op.op != "gated"]
        return [(op, half if op.result in product.halved else whole) for op in after if op.types[0].rank == 2]

    def _places(self, row: Index, column: Index) -> tuple[At, At]:
        """Where this program's columns of the product lie, and those of its pairs."""
        whole = At(row, column)
        if self.product.pairs is None:
            return whole, whole
        half = self.w.let("pair", "first_n // 2 + tl.arange(0, BLOCK_N // 2)[None, :]")
        masks = (self.w.let("pair_inside", f"{half} < {self.product.n // 2}"),) if column.masks else ()
        return whole, At(row, Index(half, masks))

    def _write_outputs(self, row: Index, column: Index, tile: str = "acc") -> None:
        """tile: the product without scale and bias."""
        whole, half = self._places(row, column)
        self._finish_product(whole, tile)
        if self.product.pairs is not None:
            self._split_pairs(self.product.pairs, whole, half)
        for output in self.product.plan.outputs:
            is_half = output.value in self.product.halved
            at = half if is_half else whole
            if width_of(output.type) != self.product.n // (2 if is_half else 1):
                problem = f"writes {output.name} {output.type} from a product of {self.product.n} columns"
                raise CodegenError(f"kernel {self.product.plan.label}", problem)
            mask, result = mask_text(at), self.e.value(output.value, at)
            self.w.line(f"tl.store({self.e.address(output, at, is_load=False)}, {result}{f', mask={mask}' if mask else ''})")

    def _finish_product(self, at: At, text: str) -> None:
        if self.product.scale is not None:
            text += f" * {self.e.load(self.product.scale, At(ZERO, at.column))}"
        if self.product.bias is not None:
            text += f" + {self.e.value(self.product.bias, At(ZERO, at.column))}"
        self.e.provide(self.product.result, at, text if text.isidentifier() else self.w.let("product", text))

    def _split_pairs(self, gated: PlanOp, whole: At, half: At) -> None:
        both = gated.operands[0]
        assert both is not None
        tile = self.e.value(both, whole)
        self.w.line(f"even, odd = tl.split(tl.reshape({tile}, [{'1' if self.is_vector else 'BLOCK_M'}, BLOCK_N // 2, 2]))")
        for place, name in zip(even_odd(half), ("even", "odd")):
            self.e.provide(both, place, name)
