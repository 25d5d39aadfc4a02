"""Writes packed weights as safetensors, one tensor in memory at a time: sizes are known from the graph's types before any tensor is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from tilewright.ir.errors import CodegenError
from tilewright.ir.graph import Value
from tilewright.ir.interpreter import evaluate_constant
from tilewright.ir.manifest import Weight
from tilewright.ir.reference import DTYPE_NAMES, QuantizedTensor
from tilewright.ir.types import ITEM_BYTES
from tilewright.ir.weights import Weights

SHARD_BYTES = 512 << 20
_SAFETENSORS = {"f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i8": "I8", "i1": "BOOL"}


@dataclass(frozen=True, slots=True)
class Shard:
    file: str  # relative to the engine
    values: tuple[Value, ...]
    entries: tuple[Weight, ...]  # in the order of their bytes: wide elements first, so that each tensor is aligned


def plan_shards(constants: Iterable[Value]) -> list[Shard]:
    """Constants in order, at most SHARD_BYTES to a file (or one larger tensor)."""
    groups: list[list[Value]] = []
    room = 0
    for value in constants:
        size = value.type.num_bytes({})
        if not groups or size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(value)
        room -= size
    return [_shard(f"weights/{i:05d}.safetensors", tuple(values)) for i, values in enumerate(groups)]


def _shard(file: str, values: tuple[Value, ...]) -> Shard:
    entries = [entry for value in values for entry in entries_of(value, file)]
    return Shard(file, values, tuple(sorted(entries, key=lambda e: -ITEM_BYTES[e.dtype])))


def entries_of(value: Value, file: str) -> list[Weight]:
    """An encoded constant is two tensors: its integers, and `<name>.scale`."""
    shape = tuple(int(d) for d in value.type.shape)
    entries = [Weight(value.name, value.type.dtype, shape, file)]
    if value.type.encoding is not None:
        entries.append(Weight(f"{value.name}.scale", value.type.encoding.scale, shape[:1], file))
    return entries


def write_shard(directory: Path, shard: Shard, weights: Weights, done: Callable[[str], None]) -> None:
    """Evaluates the shard's constants one after the other into its file. Raises CodegenError where a tensor is not what its type says."""
    header, offsets = _layout(shard.entries)
    path = directory / shard.file
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        for value in shard.values:
            for entry, tensor in zip(entries_of(value, shard.file), _tensors(value, weights)):
                _check(entry, tensor)
                file.seek(len(header) + offsets[entry.name])
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            done(value.name)


def _tensors(value: Value, weights: Weights) -> Iterator[torch.Tensor]:
    data: Any = evaluate_constant(value, weights)
    if isinstance(data, QuantizedTensor):
        yield data.data
        yield data.scale
    else:
        yield data


def _check(entry: Weight, tensor: torch.Tensor) -> None:
    found = f"{DTYPE_NAMES.get(tensor.dtype, tensor.dtype)}{list(tensor.shape)}"
    if found != f"{entry.dtype}{list(entry.shape)}":
        raise CodegenError(f"@{entry.name}", f"is {found}, the graph declares {entry.dtype}{list(entry.shape)}", "rebuild from the same checkpoint")


def _layout(entries: tuple[Weight, ...]) -> tuple[bytes, Mapping[str, int]]:
    """Header of a safetensors file (length, then JSON padded to 8 bytes), and where each tensor starts behind it."""
    table: dict[str, Any] = {}
    offsets: dict[str, int] = {}
    position = 0
    for entry in entries:
        stop = position + prod(entry.shape) * ITEM_BYTES[entry.dtype]
        table[entry.name] = {"dtype": _SAFETENSORS[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, stop]}
        offsets[entry.name], position = position, stop
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
