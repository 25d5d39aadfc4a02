"""Inputs on which the reference interpreter compares a graph before and after each pass: two short requests of random tokens."""

from __future__ import annotations

import torch

from tilewright.ir.graph import Graph
from tilewright.ir.reference import Batch
from tilewright.ir.weights import Weights
from tilewright.passes.validation import Validator

LENGTHS = (4, 3)  # tokens of the two requests
MOST_IDS = 1000  # ids are drawn below it, and below the vocabulary


def make_validator(graph: Graph, weights: Weights) -> Validator:
    """ids i32[T], positions i32[T], rows i32[S] within the graph's bounds."""
    room = min(graph.dims[name].high for name in graph.dims)
    lengths: list[int] = list(LENGTHS) if room >= sum(LENGTHS) else [1]
    lengths = lengths if graph.dims["S"].high >= len(lengths) else [min(sum(lengths), graph.dims["T"].high)]
    embedding = next((op for op in graph.find("embedding") if op.inputs[0].is_const), None)
    vocab = int(embedding.inputs[0].type.shape[0]) if embedding else MOST_IDS
    ids = torch.randint(0, min(vocab, MOST_IDS), (sum(lengths),), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    ends = torch.tensor(lengths).cumsum(0) - 1
    inputs = {
        "ids": ids,
        "positions": torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        "rows": ends.to(torch.int32),
    }
    return Validator(weights, inputs, Batch.of_lengths(lengths), graph.outputs[0].type.dtype if embedding is None else embedding.result.type.dtype)
