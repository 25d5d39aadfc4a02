"""Operators of tiles by a short way: where both operands have one plain type, Triton's rules have nothing to decide.

Knows neither kernels nor the library. Whatever is out of the ordinary takes the whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import triton.language as tl

from tilewright.runtime.triton_tiles import BUILDER, NUMBERS, SEMANTIC, Tile, form_tile, join

_FLOATS = (tl.float16, tl.bfloat16, tl.float32, tl.float64)
_INTEGERS = (tl.int8, tl.int16, tl.int32, tl.int64)
_UNPROMOTED = (tl.int32, tl.int64, tl.float32, tl.float64)  # shorter types are divided in a longer one
_OF_FLOATS = {
    "add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv",
    "lt": "fcmpOLT", "le": "fcmpOLE", "gt": "fcmpOGT", "ge": "fcmpOGE", "eq": "fcmpOEQ", "ne": "fcmpUNE",
}  # fmt: skip
_OF_INTEGERS = {
    "add": "add", "sub": "sub", "mul": "mul", "floordiv": "sdiv", "mod": "srem", "and": "and", "or": "or", "xor": "xor",
    "lt": "icmpSLT", "le": "icmpSLE", "gt": "icmpSGT", "ge": "icmpSGE", "eq": "icmpEQ", "ne": "icmpNE",
}  # fmt: skip
_OF_MASKS = {"and": "and", "or": "or"}
_DIVISIONS, _OVERFLOWING = ("truediv", "floordiv", "mod"), ("add", "sub", "mul")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_OFFSETS = {id(tl.int32), id(tl.int64)}

_NONE = (None, None, False)

Whole = Callable[..., Any]
Short = tuple[Callable[..., Any], Any, bool]  # the builder's operation, the dtype of the result, whether checked mode watches it


def shorten(member: str, whole: Whole) -> Whole:
    """The operator `__member__` of tiles; `whole` is what Triton makes of it."""
    name = member.strip("_")
    is_reflected = name not in _OF_INTEGERS | _OF_FLOATS and name.startswith("r")
    name = name[1:] if is_reflected else name
    by_dtype = {id(dtype): short for dtype, short in _short_ways(name)}
    if not by_dtype:
        return whole
    divides, compares = name in _DIVISIONS, name in _COMPARISONS

    def convert(number: Any, dtype: Any) -> Any:
        # In Triton 3.6 a number that a tile is compared with has its own type, later the tile's: where the two are one, both agree.
        return SEMANTIC.to_tensor(number, False) if compares else SEMANTIC.literal(number, dtype, divides)

    def operate(self: Tile, other: Any) -> Any:
        dtype = self.dtype
        build, result, is_watched = by_dtype.get(id(dtype), _NONE)
        right = other if type(other) is Tile else convert(other, dtype)
        if build is None or type(right) is not Tile or right.dtype is not dtype or (is_watched and BUILDER.options.sanitize_overflow):
            return whole(self, other)
        dims = self.dims if self.dims == right.dims else join(self.dims, right.dims)
        return form_tile(build(right.handle, self.handle) if is_reflected else build(self.handle, right.handle), result, dims)

    return _with_pointers(operate, whole) if member == "__add__" else operate


def _short_ways(name: str) -> Iterator[tuple[Any, Short]]:
    for dtypes, spellings in ((_FLOATS, _OF_FLOATS), (_INTEGERS, _OF_INTEGERS), ((tl.int1,), _OF_MASKS)):
        for dtype in dtypes if name in spellings else ():
            if name in _DIVISIONS and dtype not in _UNPROMOTED:
                continue
            build = getattr(BUILDER, f"create_{spellings[name]}")
            yield dtype, (build, tl.int1 if "cmp" in spellings[name] else dtype, name in _OVERFLOWING and dtypes is _INTEGERS)


def _with_pointers(add: Whole, whole: Whole) -> Whole:
    """Also pointer + offset."""

    def operate(self: Tile, other: Any) -> Any:
        if type(self.dtype) is not tl.pointer_type:
            return add(self, other)
        offset = other if type(other) is Tile else SEMANTIC.to_tensor(other, False)
        if type(offset) is not Tile or id(offset.dtype) not in _OFFSETS:
            return whole(self, other)
        dims = self.dims if self.dims == offset.dims else join(self.dims, offset.dims)
        return form_tile(BUILDER.create_addptr(self.handle, offset.handle), self.dtype, dims)

    return operate


def shorten_load(whole: Whole) -> Whole:
    """tl.load of a block of pointers; hints go the whole way once, which says whether there are such hints."""
    known: set[Any] = set()

    def load(pointer: Any, mask: Any = None, other: Any = None, *more: Any, **hints: Any) -> Any:
        key = tuple(hints.items())
        fills = other is None or (mask is not None and type(other) in NUMBERS)
        if more or not fills or key not in known or not _is_plain_access(pointer, mask):
            result = whole(pointer, mask, other, *more, **hints)
            known.add(key)
            return result
        dtype = pointer.dtype.element_ty
        if mask is None:
            return form_tile(BUILDER.create_load(pointer.handle), dtype, pointer.dims)
        filler = None if other is None else SEMANTIC.cast(SEMANTIC.to_tensor(other), dtype).handle
        return form_tile(BUILDER.create_masked_load(pointer.handle, mask.handle, filler), dtype, pointer.dims)

    return load


def shorten_store(whole: Whole) -> Whole:
    """tl.store to a block of pointers; hints as in shorten_load."""
    known: set[Any] = set()

    def store(pointer: Any, value: Any, mask: Any = None, *more: Any, **hints: Any) -> None:
        key = tuple(hints.items())
        is_plain = _is_plain_access(pointer, mask) and type(value) is Tile and join(pointer.dims, value.dims) == pointer.dims
        if more or key not in known or not is_plain:
            whole(pointer, value, mask, *more, **hints)
            known.add(key)
            return
        value = SEMANTIC.cast(value, pointer.dtype.element_ty)
        if mask is None:
            BUILDER.create_store(pointer.handle, value.handle)
        else:
            BUILDER.create_masked_store(pointer.handle, value.handle, mask.handle)

    return store


def _is_plain_access(pointer: Any, mask: Any) -> bool:
    """A block of pointers to anything but bits, under a mask that is not larger."""
    if type(pointer) is not Tile or not pointer.dims or type(pointer.dtype) is not tl.pointer_type or pointer.dtype.element_ty is tl.int1:
        return False
    return mask is None or (type(mask) is Tile and mask.dtype is tl.int1 and join(pointer.dims, mask.dims) == pointer.dims)
