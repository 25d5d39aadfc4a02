"""The scalar types of interpreted Triton, and values of them. Knows no operation.

Types without a NumPy dtype (bf16, fp8) live in f32 arrays that hold only values of the type. Integers are signed arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tilewright.runtime.triton_memory import Allocation, Array


class Element:
    """A scalar type: how it lies in memory, the dtype it is computed in, and the rounding after each operation."""

    __slots__ = ("compute", "decode", "encode", "memory", "name", "round")

    def __init__(self, name: str, memory: Any, compute: Any = None, through: torch.dtype | None = None) -> None:
        self.name, self.memory, self.compute = name, np.dtype(memory), np.dtype(compute or memory)
        self.encode, self.decode = (_keep, _keep) if through is None else _codec(through, self.memory)
        self.round = None if through is None else lambda data: self.decode(self.encode(data))


def _keep(data: Array) -> Array:
    return data


def _codec(through: torch.dtype, memory: np.dtype) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """f32 values to the bits of `through` (nearest even; fp8 saturates, as the hardware's conversion does) and back."""
    bits = {1: torch.uint8, 2: torch.int16}[memory.itemsize]
    largest = torch.finfo(through).max if memory.itemsize == 1 else None

    def encode(data: Array) -> Array:
        values = torch.from_numpy(np.require(data, np.float32, ["C", "W"]))
        values = values if largest is None else values.clamp(-largest, largest)
        return values.to(through).view(bits).numpy()

    def decode(raw: Array) -> Array:
        return torch.from_numpy(np.require(raw, memory, ["C", "W"])).view(through).float().numpy()

    return encode, decode


class Pointer:
    """Pointer to `element`; the data are absolute addresses."""

    __slots__ = ("element",)
    round = None
    compute = memory = np.dtype(np.int64)
    encode = decode = staticmethod(_keep)

    def __init__(self, element: Element) -> None:
        self.element = element


class Block:
    """A tensor type; only its shape and element matter here."""

    __slots__ = ("element", "shape")

    def __init__(self, element: Any, shape: Any) -> None:
        self.element, self.shape = element, tuple(shape)


I1 = Element("i1", np.bool_)
I8, I16, I32, I64 = (Element(f"i{bits}", f"i{bits // 8}") for bits in (8, 16, 32, 64))
F16, F32, F64 = (Element(f"f{bits}", f"f{bits // 8}") for bits in (16, 32, 64))
BF16 = Element("bf16", np.int16, np.float32, torch.bfloat16)
F8E4M3, F8E5M2 = (Element(t, np.uint8, np.float32, getattr(torch, f"float8_{t}")) for t in ("e4m3fn", "e5m2"))


class Handle:
    """A value: data with the shape of the tile, its Element or Pointer, and for pointers the tensor they were derived from."""

    __slots__ = ("data", "element", "home")

    def __init__(self, data: Array, element: Any, home: Allocation | None = None) -> None:
        self.data, self.element, self.home = data, element, home
