"""Brings the weight files of an engine to a device, and hashes on their way those that nobody else does: the bytes copied are the bytes hashed.

Files are read side by side, each in two buffers: while one is hashed and copied, the next is read. Knows safetensors, no kernel.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Weight
from tilewright.runtime.dtypes import TORCH_DTYPES
from tilewright.runtime.engine_files import MOST_THREADS, check_hash
from tilewright.runtime.progress import Advance, ignore

BUFFER_BYTES = 8 << 20
ALIGNMENT = 256  # bytes; tensors that stand elsewhere in their file are moved, as kernels rely on it
_DTYPES = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I8": "i8", "BOOL": "i1"}


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a tensor stands in its file."""

    dtype: str  # as the manifest names it
    shape: tuple[int, ...]
    start: int  # bytes behind the header
    stop: int


class WeightStream:
    """`hashes` holds the sha256 that files must have, by name; those of others are not checked."""

    def __init__(self, directory: Path, device: torch.device, hashes: dict[str, str], *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._directory, self._device, self._hashes = directory, device, hashes
        self._buffer_bytes = buffer_bytes
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # memory that is free for later work is free for copies on other streams then

    def load(self, weights: tuple[Weight, ...], advance: Advance = ignore) -> dict[str, torch.Tensor]:
        """The tensors by name, in the order of weights. Raises EngineError for a file that is not what the manifest says."""
        by_file: dict[str, list[Weight]] = {}
        for weight in weights:
            by_file.setdefault(weight.file, []).append(weight)
        count = min(MOST_THREADS, os.cpu_count() or 1, len(by_file))
        lanes: list[_Lane] = []  # that no thread uses

        def load_file(name: str) -> dict[str, torch.Tensor]:
            try:
                lane = lanes.pop()
            except IndexError:  # threads make one each, while others read already
                lane = _Lane(self._device, self._buffer_bytes)
            try:
                return self._load_file(name, by_file[name], lane)
            finally:
                lanes.append(lane)

        tensors: dict[str, torch.Tensor] = {}
        with ThreadPoolExecutor(max(1, count)) as threads:
            for found in threads.map(load_file, by_file):
                tensors |= found
                advance(len(found))
        return {weight.name: tensors[weight.name] for weight in weights}

    def _load_file(self, name: str, weights: list[Weight], lane: _Lane) -> dict[str, torch.Tensor]:
        expected = self._hashes.get(name)
        try:
            with (self._directory / name).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.sha256()
                header = _read_header(file, size)
                digest.update(header)
                block = torch.empty(size - len(header), dtype=torch.uint8, device=self._device)
                for chunk in lane.copy(file, block):
                    if expected is not None:
                        digest.update(chunk)
        except OSError as error:
            raise EngineError(f"engine {self._directory}", f"{name} cannot be read ({error})", "copy the directory again") from error
        if expected is not None:
            check_hash(self._directory, name, expected, digest.hexdigest())
        placed = self._parse_header(name, header, len(block))
        lane.wait()
        return {weight.name: _cut(block, self._find(weight, placed)) for weight in weights}

    def _parse_header(self, name: str, header: bytes, num_bytes: int) -> dict[str, _Placed]:
        try:
            table: dict[str, Any] = json.loads(header[8:].decode())
            table.pop("__metadata__", None)
            placed = {key: _Placed(_DTYPES.get(e["dtype"]) or str(e["dtype"]), tuple(e["shape"]), *e["data_offsets"]) for key, e in table.items()}
            for key, tensor in placed.items():
                if not 0 <= tensor.start <= tensor.stop <= num_bytes:
                    raise ValueError(f"{key} ends at byte {tensor.stop}, the file has {num_bytes}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"engine {self._directory}", f"{name} is not a whole safetensors file ({error})", "rebuild the engine") from error
        return placed

    def _find(self, weight: Weight, placed: dict[str, _Placed]) -> _Placed:
        tensor = placed.get(weight.name)
        if tensor is None:
            problem = f"{weight.file} has no tensor {weight.name!r}, the manifest says that it has"
            raise EngineError(f"engine {self._directory}", problem, "rebuild the engine")
        size = prod(tensor.shape) * TORCH_DTYPES[weight.dtype].itemsize
        if (tensor.dtype, tensor.shape, tensor.stop - tensor.start) != (weight.dtype, weight.shape, size):
            found = f"{weight.name} is {tensor.dtype}{list(tensor.shape)} of {tensor.stop - tensor.start} bytes in {weight.file}"
            raise EngineError(f"engine {self._directory}", f"{found}, the manifest says {weight.dtype}{list(weight.shape)}", "rebuild the engine")
        return tensor


def _read_header(file: BinaryIO, size: int) -> bytes:
    """The length and the table that a safetensors file begins with; of another file, what there is."""
    length = file.read(8)
    end = min(size, 8 + int.from_bytes(length, "little"))
    header = bytearray(length)
    while len(header) < end and (more := file.read(end - len(header))):
        header += more
    return bytes(header)


def _cut(block: torch.Tensor, placed: _Placed) -> torch.Tensor:
    piece = block[placed.start : placed.stop]
    if piece.data_ptr() % ALIGNMENT:
        piece = piece.clone()
    return piece.view(TORCH_DTYPES[placed.dtype]).view(placed.shape)


class _Lane:
    """What one file at a time passes through: two buffers, and a stream of copies."""

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self._on_gpu = device.type == "cuda"
        with torch.cuda.device(device) if self._on_gpu else nullcontext():  # a thread's own is the first GPU: pinning would wake it
            self._buffers = [torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=self._on_gpu) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._copied = [torch.cuda.Event() for _ in self._buffers] if self._on_gpu else []

    def wait(self) -> None:
        """Until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def copy(self, file: BinaryIO, block: torch.Tensor) -> Iterator[memoryview]:
        """Copies the rest of the file to block: u8[n]; gives each piece of it while it is on its way."""
        done, turn = 0, 0
        while done < len(block):
            buffer = self._buffers[turn]
            if self._on_gpu:
                self._copied[turn].synchronize()
            view = buffer.numpy().data[: len(block) - done]
            count = file.readinto(view)  # type: ignore[attr-defined]  # of raw files
            if not count:
                raise OSError(f"it ends {len(block) - done} bytes early")
            with torch.cuda.stream(self._stream):  # None changes nothing
                block[done : done + count].copy_(buffer[:count], non_blocking=True)
                if self._on_gpu:
                    self._copied[turn].record()
            yield view[:count]
            done, turn = done + count, 1 - turn
