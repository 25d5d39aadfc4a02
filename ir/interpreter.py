"""The reference interpreter: runs any snapshot of a graph op by op on the CPU, and checks each result against its declared type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tilewright.ir.errors import GraphError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr
from tilewright.ir.reference import DTYPE_NAMES, REFERENCES, Batch, QuantizedTensor, needs_batch
from tilewright.ir.weights import Weights

Observer = Callable[[Value, Any], None]


def interpret(
    graph: Graph, inputs: Mapping[str, Tensor], weights: Weights, *, batch: Batch | None = None, observe: Observer | None = None
) -> list[Any]:
    """Runs the graph and returns its outputs.

    inputs: by name, e.g. ids i32[T], positions i32[T], rows i32[S]; their sizes bind the graph's dims. batch: rows of each request
    (default: one request of T tokens). observe: called with every result. Tensors are freed after their last use.
    Raises GraphError for missing inputs, sizes out of bounds, and results whose type is not the declared one.
    """
    dims = bind_dims(graph, inputs)
    batch = batch or Batch((0, dims.get("T", 0)))
    values: dict[Value, Any] = {v: inputs[v.name] for v in graph.inputs}
    remaining = {v: len(v.users) for v in graph.values()}
    with torch.no_grad():
        for op in graph.ops:
            for operand in op.inputs:
                if operand not in values:
                    values[operand] = _load(operand, weights)
            for value, result in zip(op.results, _run(op, values, batch, dims)):
                _check(op, value, result, dims)
                values[value] = result
                if observe is not None:
                    observe(value, result)
            for operand in dict.fromkeys(op.inputs):
                remaining[operand] -= 1
                if remaining[operand] == 0 and operand not in graph.outputs:
                    del values[operand]
    return [values[v] if v in values else _load(v, weights) for v in graph.outputs]


def evaluate_constant(value: Value, weights: Weights) -> Any:
    """The tensor (or QuantizedTensor) behind a constant, loading only the parameters that it is made of."""
    assert value.is_const, f"{value} depends on the step"
    if value.producer is None:
        return _load(value, weights)
    operands = {v: evaluate_constant(v, weights) for v in value.producer.inputs}
    with torch.no_grad():
        return _run(value.producer, operands, Batch((0, 0)), {})[value.index]


def bind_dims(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of the graph's symbols, read off the inputs' shapes. Raises GraphError."""
    dims: dict[str, int] = {}
    for value in graph.inputs:
        if value.name not in inputs:
            raise GraphError(f"interpret {graph.name}", f"input %{value.name}: {value.type} is missing", "given: " + ", ".join(inputs))
        tensor = inputs[value.name]
        if tensor.dim() != value.type.rank:
            raise GraphError(f"interpret {graph.name}", f"input %{value.name} has shape {list(tensor.shape)}, declared {value.type}")
        for declared, size in zip(value.type.shape, tensor.shape):
            if dims.setdefault(declared, size) != size if isinstance(declared, str) else declared != size:
                raise GraphError(f"interpret {graph.name}", f"input %{value.name} has shape {list(tensor.shape)}, declared {value.type}, with {dims}")
    for name, size in dims.items():
        if not graph.dims[name].low <= size <= graph.dims[name].high:
            raise GraphError(f"interpret {graph.name}", f"{name}={size} is outside {graph.dims[name].low}..{graph.dims[name].high}")
    return dims


def _load(value: Value, weights: Weights) -> Tensor:
    tensor = weights.load(value.name)
    if tuple(tensor.shape) != value.type.shape:
        raise GraphError(value.display, f"the checkpoint has shape {list(tensor.shape)}, the graph declares {value.type}")
    if DTYPE_NAMES[tensor.dtype] != value.type.dtype:
        raise GraphError(value.display, f"the checkpoint gives {DTYPE_NAMES[tensor.dtype]}, the graph declares {value.type}")
    return tensor


def _run(op: Op, values: Mapping[Value, Any], batch: Batch, dims: Mapping[str, int]) -> tuple[Any, ...]:
    if op.name not in REFERENCES:
        raise GraphError(op.name, "has no reference", "register one with @reference")
    operands = [None if v is None else values[v] for v in op.operands]
    leading = [batch] if needs_batch(op.name) else []
    result = REFERENCES[op.name](*leading, *operands, **{k: _bind(v, dims) for k, v in op.attrs.items()})
    return result if isinstance(result, tuple) and len(op.results) > 1 else (result,)


def _bind(attr: Attr, dims: Mapping[str, int]) -> Any:
    return tuple(dims.get(d, d) if isinstance(d, str) else d for d in attr) if isinstance(attr, tuple) else attr


def _check(op: Op, value: Value, result: Any, dims: Mapping[str, int]) -> None:
    if value.type.dtype == "kv":
        return
    data = result.data if isinstance(result, QuantizedTensor) else result
    shape = tuple(dims[d] if isinstance(d, str) else d for d in value.type.shape)
    if tuple(data.shape) != shape or DTYPE_NAMES[data.dtype] != value.type.dtype:
        got = f"{DTYPE_NAMES[data.dtype]}{list(data.shape)}"
        raise GraphError(f"{op.name} {value.display}", f"its reference gives {got}, its type is {value.type} with {dict(dims)}")
