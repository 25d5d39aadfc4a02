"""Finds out what a written-out attention mask means, by evaluating its subgraph on a concrete token count. Knows no architecture.

A mask depends on positions and constants only; it is causal, a sliding window, and may add ALiBi: slope * key position, per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from tilewright.ir.errors import TraceError

HIDDEN = -1e4  # a score bias below this hides the key (f16 masks use -65504)


@dataclass(frozen=True, slots=True)
class ScoreBias:
    """One step of the way from q·k to softmax: scores + factor * node, or scores where node (elsewhere fill)."""

    kind: str  # "add", or "where" (node true: visible), or "fill" (node true: hidden)
    node: Node
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class MaskMeaning:
    window: int | None
    slopes: tuple[float, ...] | None  # ALiBi, one per head


class MaskProbe:
    """Evaluates position-only nodes of a program for `num_tokens` tokens of one sequence, and classifies what they add to scores."""

    def __init__(self, program: ExportedProgram, buffers: Mapping[str, Tensor], num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._program = program
        self._buffers = buffers
        self._known: dict[Node, Any] = {}
        self._inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._from_weights: dict[Node, bool] = {}

    def depends_on_weights(self, node: Node) -> bool:
        """Whether a node is computed from parameters, and so from activations."""
        for item in _ancestors(node, self._from_weights):
            mine = item.op == "placeholder" and self._inputs[item.name].kind == InputKind.PARAMETER
            self._from_weights[item] = mine or any(self._from_weights[i] for i in item.all_input_nodes)
        return self._from_weights[node]

    def classify(self, biases: tuple[ScoreBias, ...]) -> MaskMeaning:
        """Raises TraceError where the biases are neither a mask nor ALiBi."""
        n = self.num_tokens
        total = torch.zeros(1, n, n, dtype=torch.float64)
        for bias in biases:
            total = total + self._bias_value(bias)
        visible = total > HIDDEN
        query, key = torch.arange(n)[:, None], torch.arange(n)[None, :]
        distance = query - key
        window = int(distance[visible[0]].max()) + 1 if visible.any() else 0
        if not bool((visible == ((distance >= 0) & (distance < window))).all()):
            raise TraceError("attention mask", f"for {n} tokens it is neither causal nor a sliding window")
        return MaskMeaning(window if window < n else None, self._slopes(torch.where(visible, total, 0.0), visible))

    def _slopes(self, bias: Tensor, visible: Tensor) -> tuple[float, ...] | None:
        """bias: f64[heads, n, n], zero where hidden."""
        if not bias.any():
            return None
        row = bias[:, -1, :]  # the last query sees most
        nearest_zero = int(row[0].abs()[visible[0, -1]].argmin()) + int(visible[0, -1].long().argmax())
        at = max(nearest_zero, 1)
        slopes = row[:, at] - row[:, at - 1]
        index = torch.arange(self.num_tokens, dtype=torch.float64)
        wanted = slopes[:, None, None] * (index[None, :] - index[:, None])
        found = bias - bias.diagonal(dim1=1, dim2=2)[:, :, None]
        error = (torch.where(visible, found - wanted, 0.0)).abs().amax()
        if error > 2**-6 * bias.abs().amax():  # ALiBi may be built in bf16
            raise TraceError("attention mask", f"adds up to {bias.abs().amax():.3g} to scores, and not linearly in the key's position as ALiBi does")
        return tuple(float(s) for s in slopes)

    def _bias_value(self, bias: ScoreBias) -> Tensor:
        """f64[1 or heads, n, n]"""
        value = self.evaluate(bias.node)
        if bias.kind == "add" and value.dtype != torch.bool:
            value = value.double() * bias.factor
        else:
            hidden = value.bool() if bias.kind == "fill" else ~value.bool()
            value = torch.where(hidden, -torch.inf, torch.zeros((), dtype=torch.float64))
        value = value.reshape(value.shape[-3:]) if value.dim() > 3 else value
        return value.expand(value.shape[0] if value.dim() == 3 else 1, self.num_tokens, self.num_tokens)

    def evaluate(self, node: Node) -> Tensor:
        for item in _ancestors(node, self._known):
            if item not in self._known:
                self._known[item] = self._run(item)
        return self._known[node]

    def _run(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._input(node)
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self._known[n])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def _input(self, node: Node) -> Any:
        spec = self._inputs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            return torch.arange(self.num_tokens) if node.name == "positions" else torch.zeros(self.num_tokens, dtype=torch.long)
        name = str(spec.target)
        if spec.kind == InputKind.BUFFER:
            return self._buffers[name.partition(".")[2]]
        return self._program.constants[name]


def _ancestors(node: Node, known: Mapping[Node, Any]) -> list[Node]:
    """The nodes that `node` is computed from and itself, operands first, without those already known."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False)]
    while stack:
        item, expanded = stack.pop()
        if expanded:
            order.append(item)
        elif item not in seen and item not in known:
            seen.add(item)
            stack.append((item, True))
            stack.extend((operand, False) for operand in item.all_input_nodes)
    return order
