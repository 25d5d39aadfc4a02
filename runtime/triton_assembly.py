"""Runs inline assembly (PTX) of interpreted kernels on NumPy arrays: straight-line code of the few instructions that templates use."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.runtime.triton_elements import BF16, F16
from tilewright.runtime.triton_memory import Array

_BITWISE: dict[str, Callable[[Any, Any], Any]] = {"and.b32": operator.and_, "or.b32": operator.or_, "xor.b32": operator.xor}
_PAIRS = {"sub.bf16x2": BF16, "sub.f16x2": F16}


def run_assembly(text: str, operands: Sequence[Array], num_results: int) -> list[Array]:
    """Raw bits of the operands in, raw bits of the results out: $0, $1, … are the results, the operands follow."""
    values: dict[str, Array] = {f"${num_results + i}": np.asarray(bits).view(f"u{bits.itemsize}") for i, bits in enumerate(operands)}
    for statement in re.sub(r"^\s*\{|\}\s*$", "", text).split(";"):
        name, _, rest = statement.strip().partition(" ")
        if name and name != ".reg":
            _run(name, re.findall(r"\{[^}]*\}|[^,\s]+", rest), values)
    return [values[f"${i}"] for i in range(num_results)]


def _run(name: str, arguments: list[str], values: dict[str, Array]) -> None:
    target, *sources = arguments
    inputs = [values[source] if source in values else np.uint32(int(source, 0)) for source in sources]
    if name == "mov.b32" and target.startswith("{"):
        for half, value in zip(re.findall(r"[\w$]+", target), _halves(inputs[0])):
            values[half] = value
    elif name == "mov.b32":
        values[target] = inputs[0]
    elif name == "prmt.b32":
        values[target] = _permute_bytes(*inputs)
    elif name in _BITWISE:
        values[target] = _BITWISE[name](*inputs)
    elif name in _PAIRS:
        values[target] = _subtract_pairs(_PAIRS[name], *inputs)
    else:
        raise NotImplementedError(f"inline assembly: no model of {name!r} in NumPy; add one to {__name__}")


def _halves(word: Array) -> tuple[Array, Array]:
    return (word & 0xFFFF).astype(np.uint16), (word >> 16).astype(np.uint16)


def _permute_bytes(low: Array, high: Array, selector: Array) -> Array:
    """Each of the selector's four nibbles names one of the eight bytes of high:low."""
    result = np.uint32(0)
    for place in range(4):
        chosen = int(selector) >> 4 * place & 0xF
        if chosen > 7:
            raise NotImplementedError(f"inline assembly: prmt with selector {int(selector):#x}, which repeats signs")
        result = result | ((high if chosen > 3 else low) >> 8 * (chosen % 4) & 0xFF) << 8 * place
    return result


def _subtract_pairs(element: Any, left: Array, right: Array) -> Array:
    low, high = (
        np.asarray(element.encode(element.decode(a.view(element.memory)) - element.decode(b.view(element.memory)))).view(np.uint16)
        for a, b in zip(_halves(left), _halves(right))
    )
    return low | high.astype(np.uint32) << 16
