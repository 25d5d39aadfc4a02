"""Tensor descriptors of interpreted Triton: blocks of a strided tensor by their first element, as the GPU's copy engine moves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core

from tilewright.runtime.triton_elements import Handle
from tilewright.runtime.triton_memory import Array
from tilewright.runtime.triton_tiles import BUILDER, SEMANTIC, Tile, make_tile

_COPY_BYTES = 16  # what the copy engine moves at least: of a row, and between rows


class Descriptor:
    """What lies outside of `shape` reads as zero, and is not written."""

    def __init__(self, base: Tile, shape: Sequence[Any], strides: Sequence[Any], block_shape: Sequence[Any], **options: Any) -> None:
        """Raises ValueError where a GPU's descriptor would be refused, or would move something else."""
        self.base = base
        self.dtype: Any = base.dtype.element_ty
        self.shape, self.strides = ([_number(size) for size in sizes] for sizes in (shape, strides))
        self.block_shape = [_number(size) for size in block_shape]
        size = self.dtype.primitive_bitwidth // 8
        if self.strides[-1] != 1 or any(stride * size % _COPY_BYTES for stride in self.strides[:-1]):
            raise ValueError(f"strides {self.strides} of {self.dtype}: the last must be 1, the others multiples of {_COPY_BYTES} bytes")
        if self.block_shape[-1] * size < _COPY_BYTES or int(base.handle.data) % _COPY_BYTES:
            raise ValueError(f"rows of {self.block_shape[-1]} {self.dtype} at {int(base.handle.data):#x}: at least {_COPY_BYTES} bytes, aligned")

    def load(self, offsets: Sequence[Any], **hints: Any) -> Tile:
        pointer, inside = self._locate(offsets)
        zero = Handle(np.zeros((), self.dtype.to_ir(BUILDER).compute), self.dtype.to_ir(BUILDER))
        return make_tile(BUILDER.create_masked_load(pointer, Handle(inside, tl.int1.to_ir(BUILDER)), zero).data, self.dtype)

    def store(self, offsets: Sequence[Any], value: Tile) -> None:
        pointer, inside = self._locate(offsets)
        BUILDER.create_masked_store(pointer, SEMANTIC.cast(value, self.dtype).handle, Handle(inside, tl.int1.to_ir(BUILDER)))

    def _locate(self, offsets: Sequence[Any]) -> tuple[Handle, Array]:
        rank = len(self.block_shape)
        distance, inside = np.zeros([1] * rank, np.int64), np.ones([1] * rank, np.bool_)
        for axis, (offset, size, stride, block) in enumerate(zip(offsets, self.shape, self.strides, self.block_shape, strict=True)):
            index = (_number(offset) + np.arange(block, dtype=np.int64)).reshape([-1 if i == axis else 1 for i in range(rank)])
            distance, inside = distance + index * stride, inside & (index >= 0) & (index < size)
        base = self.base.handle
        return BUILDER.create_addptr(base, Handle(np.where(inside, distance, 0), None)), inside


def _number(value: Any) -> int:
    plain: Any = core._unwrap_if_constexpr(value)
    return int(plain.handle.data if isinstance(plain, Tile) else plain)
