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
_SHAPES: dict[Dims, tuple[Any, Any]] = {}  # dims -> `shape` and `numel` of a tensor with them
_BLOCKS: dict[tuple[int, Dims], Any] = {}  # id of the scalar type (kept alive by the value), dims -> block type


class Tile(tl.tensor):
    """A `tl.tensor` whose handle holds NumPy data and whose operators need no compiler.

    The data may have dims of 1 where `dims` is larger (only in operands of an operation that broadcasts).
    """

    def __init__(self, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.dims: Dims = tuple(type.shape) if type.is_block() else ()
        if self.dims not in _SHAPES:
            _SHAPES[self.dims] = core.tuple([core.constexpr(size) for size in self.dims]), core.constexpr(math.prod(self.dims))
        self.shape, self.numel = _SHAPES[self.dims]

    def __getitem__(self, index: Any) -> Tile:
        """New axes only, as in Triton: `x[:, None]`."""
        result = self
        for axis, part in enumerate(index if isinstance(index, tuple) else (index,)):
            if part is None:
                result = SEMANTIC.expand_dims(result, axis)
            elif part != slice(None):
                raise ValueError(f"unsupported tensor index: {part}")
        return result

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
    return Tile(Handle(data, dtype.to_ir(BUILDER)), _make_type(dtype, np.shape(data)))


def _make_type(dtype: Any, dims: Dims) -> Any:
    if not dims:
        return dtype
    key = id(dtype), dims
    if key not in _BLOCKS:
        _BLOCKS[key] = _Block(dtype, list(dims))
    return _BLOCKS[key]


@functools.cache
def _join(left: Dims, right: Dims) -> Dims:
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
        self.constants: dict[tuple[str, str, bool], Tile | None] = {}  # literal, type of the tile beside it, division -> its tile

    def to_tensor(self, x: Any, check_type: bool = True) -> Any:
        return x if isinstance(x, Tile) else super().to_tensor(x, check_type)

    def cast(self, input: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
        return input if dst_ty is input.dtype else super().cast(input, dst_ty, fp_downcast_rounding)

    def expand_dims(self, input: Any, axis: int) -> Any:
        dims = (*input.dims[: axis % (len(input.dims) + 1)], 1, *input.dims[axis % (len(input.dims) + 1) :])
        handle = input.handle
        return Tile(Handle(np.reshape(handle.data, dims), handle.element, handle.home), _make_type(input.dtype, dims))

    def broadcast_impl_value(self, lhs: Any, rhs: Any) -> Any:
        if lhs.dims == rhs.dims:
            return lhs, rhs
        dims = _join(lhs.dims, rhs.dims)
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
        elif arithmetic_check and isinstance(lhs, Tile) and (literal := self._resolve(rhs, lhs.dtype, div_or_mod)):
            return self.broadcast_impl_value(lhs, literal)
        elif arithmetic_check and isinstance(rhs, Tile) and (literal := self._resolve(lhs, rhs.dtype, div_or_mod)):
            return self.broadcast_impl_value(literal, rhs)
        return super().binary_op_type_checking_impl(lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    def _resolve(self, literal: Any, dtype: Any, div_or_mod: bool) -> Tile | None:
        """The tile of a Python number beside a tile of `dtype`; None where the number changes the type of the result."""
        if type(literal) not in (int, float, bool) or dtype.is_ptr():
            return None
        key = repr(literal), dtype.name, div_or_mod
        if key not in self.constants:
            like = self.scalar_constant(1, dtype)
            _, constant = super().binary_op_type_checking_impl(like, literal, div_or_mod=div_or_mod)
            self.constants[key] = constant if constant.dtype == dtype else None
        return self.constants[key]


BUILDER = NumpyBuilder()
SEMANTIC: Any = Semantic(BUILDER)  # Any: Triton's annotations do not hold together
