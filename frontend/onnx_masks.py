"""Attention masks that depend on nothing but the number of tokens: recognised by evaluating them, as causal, with a window, with slopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tilewright.ir.types import TensorType

LENGTHS = (33, 4099)  # tokens that a mask is evaluated for; a window must be smaller
LENGTHS_WITH_HEADS = (33, 257)
OTHER_SIZE = 3  # of symbols that are not the number of tokens
MAX_ELEMENTS = 1 << 16  # of a constant that a mask may read: more is no mask
HIDDEN = -1e4  # what is added to a score that counts for nothing is no more than this


@dataclass(frozen=True, slots=True)
class Mask:
    """What token i sees: j <= i, where window is given i - window < j too; slopes * (j - i) is added by head."""

    window: int | None
    slopes: tuple[float, ...] | None = None


def read_masks(proto: ModelProto, inputs: Mapping[str, TensorType]) -> dict[str, Mask]:
    """The masks of Attention nodes that are understood, by name. inputs: types as imported, in which T is the number of tokens."""
    named = {node.input[3] for node in proto.graph.node if node.op_type == "Attention" and len(node.input) > 3 and node.input[3]}
    found = {name: _read_mask(proto, name, inputs) for name in sorted(named)}
    return {name: mask for name, mask in found.items() if mask is not None}


def needed_nodes(proto: ModelProto, masks: Mapping[str, Mask]) -> list[NodeProto]:
    """What the outputs depend on, in order; masks that are understood are not computed."""
    return _ancestors(proto, [o.name for o in proto.graph.output], masks)


def _ancestors(proto: ModelProto, names: list[str], masks: Mapping[str, Mask]) -> list[NodeProto]:
    makers = {name: i for i, node in enumerate(proto.graph.node) for name in node.output if name}
    wanted, waiting = set(), list(names)
    while waiting:
        place = makers.get(waiting.pop())
        if place is None or place in wanted:
            continue
        wanted.add(place)
        node = proto.graph.node[place]
        waiting += [name for i, name in enumerate(node.input) if not (i == 3 and node.op_type == "Attention" and name in masks)]
    return [node for i, node in enumerate(proto.graph.node) if i in wanted]


def _read_mask(proto: ModelProto, name: str, inputs: Mapping[str, TensorType]) -> Mask | None:
    part = _cut_out(proto, name)
    if part is None or any(i.name not in inputs for i in part.graph.input):
        return None
    small = _evaluate(part, inputs, LENGTHS[0])
    first = None if small is None else _classify(small)
    if first is None or small is None:
        return None
    large = _evaluate(part, inputs, LENGTHS[1] if small.size == LENGTHS[0] ** 2 else LENGTHS_WITH_HEADS[1])
    second = None if large is None else _classify(large)
    return second if second is not None and second.slopes == first.slopes and first.window in (second.window, None) else None


def _cut_out(proto: ModelProto, name: str) -> ModelProto | None:
    """A model that computes the mask alone; None where it reads large tensors, and is no mask."""
    nodes = _ancestors(proto, [name], {})
    read = {n for node in nodes for n in node.input} | {name}
    weights = [t for t in proto.graph.initializer if t.name in read]
    if any(node.domain not in ("", "ai.onnx") for node in nodes):
        return None
    if any(np.prod(t.dims) > MAX_ELEMENTS or t.data_location == TensorProto.EXTERNAL for t in weights):
        return None
    given = [i for i in proto.graph.input if i.name in read and i.name not in {t.name for t in weights}]
    graph = helper.make_graph(nodes, "mask", given, [helper.make_empty_tensor_value_info(name)], weights)
    return helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)


def _evaluate(part: ModelProto, inputs: Mapping[str, TensorType], length: int) -> np.ndarray | None:
    """None where the values of inputs count too, not only their shapes."""
    results = []
    for fill in (0, 1):
        fed = {}
        for info in part.graph.input:
            shape = [(length if d == "T" else OTHER_SIZE) if isinstance(d, str) else d for d in inputs[info.name].shape]
            fed[info.name] = np.full(shape, fill, helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
        try:
            results.append(np.asarray(next(iter(ReferenceEvaluator(part).run(None, fed)))))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):  # an operator that onnx itself does not run
            return None
    return results[0] if np.array_equal(*results) else None


def _classify(mask: np.ndarray) -> Mask | None:
    size = mask.shape[-1] if mask.ndim >= 2 else 0
    if mask.shape[-2:] != (size, size) or size < 2 or (mask.ndim == 4 and mask.shape[0] != 1):
        return None
    heads = mask.reshape(-1, size, size)
    seen = heads if mask.dtype == np.bool_ else heads > HIDDEN
    distance = np.arange(size)[None, :] - np.arange(size)[:, None]
    first = int(np.argmax(seen[0, -1]))  # that the last token sees
    window = size - first if first else None
    allowed = (distance <= 0) & (distance > -(window or size))
    if not (seen == allowed).all():
        return None
    if mask.dtype == np.bool_ or not heads[:, allowed].any():
        return Mask(window)
    slopes = -heads[:, 1, 0]
    fits = np.allclose(heads[:, allowed], slopes[:, None] * distance[allowed][None, :], rtol=1e-4, atol=1e-6)
    return Mask(window, tuple(float(s) for s in slopes)) if fits else None
