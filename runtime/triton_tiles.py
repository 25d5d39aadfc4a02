"""Tiles: Triton's tensors over NumPy data, with Triton's own type rules. Knows neither kernels nor the library.

The rules are those of TritonSemantic; the paths that every kernel takes again and again are answered here from caches.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic

from tilewright.runtime.triton_elements import Handle
from tilewright.runtime.triton_memory import Array
from tilewright.runtime.triton_numpy import NumpyBuilder

Dims = tuple[int, ...]
NUMBERS, _MANY_NUMBERS = (int, float, bool), 4096
_PLAIN = {id(dtype) for dtype in (tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.int8, tl.int16, tl.int32, tl.int64)}  # converted at once
_BLOCKS: dict[tuple[int, Dims], Any] = {}  # id of the scalar type (kept alive by the value), dims -> block type


class Tile(tl.tensor):
    """A `tl.tensor` whose handle holds NumPy data and whose operators need no compiler.

    The data may have dims of 1 where `dims` is larger (only in operands of an operation that broadcasts).
    """

    def __init__(self, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.dims: Dims = tuple(type.shape) if type.is_block() else ()

    @property
    def shape(self) -> Any:
        return _describe_dims(self.dims)[0]

    @property
    def numel(self) -> Any:
        return _describe_dims(self.dims)[1]

    def __getitem__(self, index: Any) -> Tile:
        """New axes only, as in Triton: `x[:, None]`."""
        dims: list[int] = []
        rest = iter(self.dims)
        for part in index if isinstance(index, tuple) else (index,):
            if part is not None and part != slice(None):
                raise ValueError(f"unsupported tensor index: {part}")
            size = 1 if part is None else next(rest, None)
            if size is None:
                raise ValueError(f"too many indices for a tensor of rank {len(self.dims)}: {index}")
            dims.append(size)
        return _reshape(self, (*dims, *rest))

    @property
    def T(self) -> Tile:
        return SEMANTIC.permute(self, (1, 0))

    def __repr__(self) -> str:
        return f"{self.type}: {self.handle.data if self.handle else None}"

    __str__ = __repr__


class _Block(tl.block_type):
    """A block type made once for its scalar type and dims."""

    def with_element_ty(self, scalar_ty: Any) -> Any:
        return _make_type(scalar_ty, tuple(self.shape))


def make_tile(data: Array, dtype: Any) -> Tile:
    return form_tile(Handle(data, dtype.to_ir(BUILDER)), dtype, np.shape(data))


def form_tile(handle: Handle, dtype: Any, dims: Dims) -> Tile:
    """As the constructor, for a caller who knows the dims."""
    tile: Tile = object.__new__(Tile)
    tile.handle, tile.dtype, tile.dims, tile.type = handle, dtype, dims, _make_type(dtype, dims)
    return tile


def _reshape(tile: Tile, dims: Dims) -> Tile:
    handle = tile.handle
    return form_tile(Handle(np.reshape(handle.data, dims), handle.element, handle.home), tile.dtype, dims)


@functools.cache
def _describe_dims(dims: Dims) -> tuple[Any, Any]:
    """`shape` and `numel` of a tensor."""
    return core.tuple([core.constexpr(size) for size in dims]), core.constexpr(math.prod(dims))


def _make_type(dtype: Any, dims: Dims) -> Any:
    if not dims:
        return dtype
    key = id(dtype), dims
    if key not in _BLOCKS:
        _BLOCKS[key] = _Block(dtype, list(dims))
    return _BLOCKS[key]


@functools.cache
def join(left: Dims, right: Dims) -> Dims:
    """The shape that both broadcast to."""
    rank = max(len(left), len(right))
    pairs = list(zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right))
    for axis, (a, b) in enumerate(pairs):
        if a != b and 1 not in (a, b):
            raise ValueError(f"Cannot make_shape_compatible: incompatible dimensions at index {axis}: {a} and {b}")
    return tuple(max(pair) for pair in pairs)


class Semantic(TritonSemantic):
    """Each override gives what the base class gives; it only gets there sooner."""

    tensor = Tile

    def __init__(self, builder: Any) -> None:
        super().__init__(builder)
        self.literals: dict[tuple[Any, type, str, bool], Tile | None] = {}  # number, its type, type of the tile beside it, division -> its tile
        self.numbers = functools.lru_cache(_MANY_NUMBERS)(self._number_tile)

    def to_tensor(self, x: Any, check_type: bool = True) -> Any:
        if isinstance(x, Tile):
            return x
        return self.numbers(_key(x), type(x)) if type(x) in NUMBERS else super().to_tensor(x, check_type)

    def _number_tile(self, key: Any, kind: type) -> Tile:
        return super().to_tensor(kind(key))

    def cast(self, input: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
        dtype = input.dtype
        if dst_ty is dtype:
            return input
        if id(dtype) in _PLAIN and id(dst_ty) in _PLAIN and fp_downcast_rounding is None:
            return form_tile(BUILDER.create_fp_to_fp(input.handle, dst_ty.to_ir(BUILDER)), dst_ty, input.dims)
        return super().cast(input, dst_ty, fp_downcast_rounding)

    def arange(self, start: int, end: int, *, ret_ty: Any = None) -> Any:
        return super().arange(start, end, ret_ty=ret_ty) if ret_ty is not None else self._arange(start, end)

    @functools.cache  # noqa: B019  # one semantic a process
    def _arange(self, start: int, end: int) -> Any:
        return super().arange(start, end)

    def full(self, shape: Any, value: Any, dtype: Any) -> Any:
        if type(value) not in NUMBERS or dtype.is_ptr():
            return super().full(shape, value, dtype)
        return self._full(tuple(shape), _key(value), type(value), dtype)

    @functools.cache  # noqa: B019  # as above
    def _full(self, shape: Dims, key: Any, kind: type, dtype: Any) -> Any:
        return super().full(list(shape), kind(key), dtype)

    def expand_dims(self, input: Any, axis: int) -> Any:
        axis %= len(input.dims) + 1
        return _reshape(input, (*input.dims[:axis], 1, *input.dims[axis:]))

    def broadcast_impl_value(self, lhs: Any, rhs: Any) -> Any:
        if lhs.dims == rhs.dims:
            return lhs, rhs
        dims = join(lhs.dims, rhs.dims)
        widened = (tile if tile.dims == dims else Tile(tile.handle, _make_type(tile.dtype, dims)) for tile in (lhs, rhs))
        return tuple(widened)

    def binary_op_type_checking_impl(
        self,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        if isinstance(lhs, Tile) and isinstance(rhs, Tile):
            same = lhs.dtype is rhs.dtype and not lhs.dtype.is_ptr()
            if same and not (div_or_mod and lhs.dtype.primitive_bitwidth < 32):
                return self.broadcast_impl_value(lhs, rhs)
        elif arithmetic_check and isinstance(lhs, Tile) and (literal := self.literal(rhs, lhs.dtype, div_or_mod)):
            return self.broadcast_impl_value(lhs, literal)
        elif arithmetic_check and isinstance(rhs, Tile) and (literal := self.literal(lhs, rhs.dtype, div_or_mod)):
            return self.broadcast_impl_value(literal, rhs)
        return super().binary_op_type_checking_impl(lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    def literal(self, number: Any, dtype: Any, div_or_mod: bool) -> Tile | None:
        """The tile of a Python number beside a tile of `dtype`; None where the number changes the type of the result."""
        kind = type(number)
        if kind not in NUMBERS or dtype.is_ptr():
            return None
        key = _key(number), kind, dtype.name, div_or_mod
        if key not in self.literals:
            like = self.scalar_constant(1, dtype)
            _, constant = super().binary_op_type_checking_impl(like, number, div_or_mod=div_or_mod)
            self.literals[key] = constant if constant.dtype == dtype else None
        return self.literals[key]


def _key(number: Any) -> Any:
    """Tells all numbers of one type apart: 0.0 equals -0.0, and NaN nothing."""
    return repr(number) if type(number) is float else number


BUILDER = NumpyBuilder()
SEMANTIC: Any = Semantic(BUILDER)  # Any: Triton's annotations do not hold together
