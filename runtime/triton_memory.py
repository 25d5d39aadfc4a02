"""Memory of interpreted Triton kernels: every tensor argument is an allocation, every access is checked against it. Knows no Triton.

Checked memory also finds races: two programs of one launch that touch the same bytes, one of them writing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tilewright.ir.errors import EngineError

Array = Any  # np.ndarray of any dtype; NumPy's own generics say less than they cost
_NOBODY, _SEVERAL = -1, -2  # in the shadow arrays: no program, more than one program


class MemoryFault(EngineError):
    """An access outside its tensor, misaligned, or racing with another program."""


class Allocation:
    """The bytes of one tensor argument: `span` elements from its first to its last, whatever its strides."""

    __slots__ = ("address", "bytes", "name", "reader", "size", "views", "writer")

    def __init__(self, name: str, tensor: torch.Tensor, *, checked: bool) -> None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
        flat = tensor.detach().as_strided((span,), (1,), tensor.storage_offset())
        self.name, self.address = name, tensor.data_ptr()
        self.bytes: Array = flat.view(torch.uint8).numpy() if span else np.empty(0, np.uint8)
        self.size = self.bytes.size
        self.views: dict[Any, Array] = {}
        self.writer: Array = np.full(self.size, _NOBODY, np.int32) if checked else None
        self.reader: Array = np.full(self.size, _NOBODY, np.int32) if checked else None

    def view(self, dtype: Any) -> Array:
        """All whole elements of `dtype`, sharing the tensor's bytes."""
        if dtype not in self.views:
            self.views[dtype] = self.bytes[: self.size - self.size % dtype.itemsize].view(dtype)
        return self.views[dtype]


class Memory:
    """The allocations of one launch. Pointers are i64 arrays of absolute addresses."""

    def __init__(self, kernel: str, *, checked: bool) -> None:
        self.kernel, self.checked = kernel, checked
        self.allocations: list[Allocation] = []
        self.program, self.program_id = (0, 0, 0), 0
        self.synchronized = False  # the running program has done an atomic: other programs' writes may be visible to it

    def add(self, name: str, tensor: torch.Tensor) -> Allocation:
        self.allocations.append(Allocation(name, tensor, checked=self.checked))
        return self.allocations[-1]

    def enter(self, program: tuple[int, int, int], program_id: int) -> None:
        self.program, self.program_id, self.synchronized = program, program_id, False

    def load(self, pointers: Array, mask: Array, dtype: np.dtype, home: Allocation | None) -> Array:
        """Elements at `pointers`; lanes where `mask` (None: all) is false hold anything."""
        if mask is not None and not mask.any():
            return np.zeros(pointers.shape, dtype)
        home, index = self._locate("load", pointers, mask, dtype.itemsize, home)
        if self.checked:
            self._note_read(home, index if mask is None else index[mask], dtype.itemsize)
        return home.view(dtype)[index if mask is None else np.where(mask, index, 0)]

    def store(self, pointers: Array, values: Array, mask: Array, home: Allocation | None) -> None:
        if mask is not None:
            pointers, values = pointers[mask], values[mask]
            if not pointers.size:
                return
        home, index = self._locate("store", pointers, None, values.itemsize, home)
        target = home.view(values.dtype)
        target[index] = values
        if self.checked:
            self._note_write(home, index, values.itemsize)
            if (_bits(target[index]) != _bits(values)).any():
                raise self._fault(f"two lanes store different values to the same element of {home.name!r}", "give each element one lane")

    def update(self, pointers: Array, values: Array, home: Allocation | None, change: Callable[[Array, Array, Array], Array]) -> Array:
        """Atomic read-modify-write, lane by lane: `change(old, value, lane)` for each; returns the old elements."""
        self.synchronized = True
        if not pointers.size:
            return np.empty_like(values)
        home, index = self._locate("atomic", pointers, None, values.itemsize, home)
        target = home.view(values.dtype)
        lanes = np.arange(index.size)
        if np.unique(index).size == index.size:
            old = target[index]
            target[index] = change(old, values, lanes)
            return old
        old = np.empty_like(values)
        for lane in lanes:
            here = slice(lane, lane + 1)
            old[here] = target[index[here]]
            target[index[here]] = change(old[here], values[here], lanes[here])
        return old

    def _locate(self, kind: str, pointers: Array, mask: Array, itemsize: int, home: Allocation | None) -> tuple[Allocation, Array]:
        """The allocation and the element index of each pointer, after checking bounds (and alignment, in checked memory)."""
        active = pointers if mask is None else pointers[mask]
        low, high = int(active.min()), int(active.max())
        if home is None:
            home = self._find(low)
        if low < home.address or high + itemsize > home.address + home.size:
            raise self._out_of_bounds(kind, active, itemsize, home)
        offsets = pointers - home.address
        if self.checked and (active - home.address & (itemsize - 1)).any():
            raise self._fault(f"{kind} of {itemsize} bytes at an address of {home.name!r} that is not a multiple of {itemsize}", "")
        return home, offsets >> (itemsize.bit_length() - 1)

    def _find(self, address: int) -> Allocation:
        for allocation in self.allocations:
            if allocation.address <= address < allocation.address + allocation.size:
                return allocation
        raise self._fault(f"address {address:#x} lies in no argument", "pass the tensor that it points into as an argument")

    def _note_read(self, home: Allocation, index: Array, itemsize: int) -> None:
        start, me = index * itemsize, self.program_id
        writer = home.writer[start]
        other = writer[(writer != _NOBODY) & (writer != me)]
        if other.size and not self.synchronized:
            raise self._race(home, "reads what", "wrote", other[0])
        reader = home.reader[start]
        home.reader[start] = np.where((reader == _NOBODY) | (reader == me), me, _SEVERAL)

    def _note_write(self, home: Allocation, index: Array, itemsize: int) -> None:
        start, me = index * itemsize, self.program_id
        for shadow, verb in ((home.writer, "wrote"), (home.reader, "read")):
            seen = shadow[start]
            other = seen[(seen != _NOBODY) & (seen != me)]
            if other.size and not self.synchronized:
                raise self._race(home, "writes what", verb, other[0])
        home.writer[start] = me

    def _race(self, home: Allocation, act: str, verb: str, other: int) -> MemoryFault:
        whom = f"program number {other}" if other >= 0 else "several programs"
        return self._fault(f"{act} {whom} {verb} in {home.name!r}: a race", "split the work so that one program owns each element")

    def _out_of_bounds(self, kind: str, active: Array, itemsize: int, home: Allocation) -> MemoryFault:
        offsets = (active - home.address).reshape(-1)
        outside = offsets[(offsets < 0) | (offsets + itemsize > home.size)]
        count = f"{outside.size} of {offsets.size} lanes"
        return self._fault(f"{kind} at byte {outside[0]} of {home.name!r}, which has {home.size} bytes ({count})", "mask the access")

    def _fault(self, problem: str, remedy: str) -> MemoryFault:
        return MemoryFault(f"kernel {self.kernel}, program {self.program}", problem, remedy)


def _bits(values: Array) -> Array:
    """The elements as unsigned integers, so that NaN equals itself."""
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")
