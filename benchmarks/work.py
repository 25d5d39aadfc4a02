"""What a model must read and compute at least, from its engine's manifest and its config; and the least time of that on a machine of known limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from transformers import PretrainedConfig

from tilewright.ir.manifest import Manifest, Program
from tilewright.measure import bytes_per_token, measure_read_limit, weights_read_whole
from tilewright.runtime.kv_cache import page_bytes

ATTENTION_SHARE = 0.72  # of the matrix limit that attention over long prompts reaches in the best kernels known: 550 of 764 TFLOP/s


@dataclass(frozen=True, slots=True)
class Machine:
    bytes_per_second: float  # read at most
    operations_per_second: float  # of bf16 matrix products at most

    @staticmethod
    def measure() -> Machine | None:
        """This GPU; None without one."""
        return Machine(measure_read_limit(), measure_matrix_limit()) if torch.cuda.is_available() else None

    def __str__(self) -> str:
        return f"read limit {self.bytes_per_second / 1e12:.2f} TB/s, matrix limit {self.operations_per_second / 1e12:.0f} TFLOP/s"


def measure_matrix_limit(size: int = 8192, repeat: int = 5) -> float:
    """Operations a second of a square bf16 product through torch: the best of `repeat`."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * size**3 / min(time_on_gpu(lambda: a @ b, repeat))


def time_on_gpu(run, repeat: int) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


@dataclass(frozen=True, slots=True)
class Work:
    """Of one model with its weights as an engine stores them."""

    weight_bytes: int  # that a step reads
    products: tuple[tuple[int, int], ...]  # (rows, columns) of each weight that every token is multiplied by
    heads: tuple[tuple[int, int], ...]  # the same, of those that only sampled rows are multiplied by
    kv_bytes: int  # of one token's keys and values, all layers
    attention_operations: int  # for each pair of a query token and a key, all layers

    @staticmethod
    def of(manifest: Manifest, config: PretrainedConfig) -> Work:
        program = max((p for p in manifest.programs if p.kind == "ragged"), key=lambda p: p.max_tokens)
        shapes = _product_shapes(manifest, program)
        vocab = manifest.model.vocab_size
        query_heads = config.num_attention_heads
        pairs = sum(2 * query_heads * (layer.head_dim + layer.value_dim) for layer in manifest.cache.layers)
        return Work(
            bytes_per_token(manifest),
            tuple(shape for shape in shapes if shape[0] < vocab),
            tuple(shape for shape in shapes if shape[0] >= vocab),
            page_bytes(manifest.cache, 1),
            pairs,
        )

    def linear_operations(self, tokens: int, sampled: int) -> int:
        return 2 * sum(map(prod, self.products)) * tokens + 2 * sum(map(prod, self.heads)) * sampled

    def decode_seconds(self, contexts: Sequence[int], machine: Machine) -> float:
        """A step of one token for each sequence: its bytes once, or its products, whichever takes longer."""
        num_bytes = self.weight_bytes + self.kv_bytes * sum(contexts)
        return max(num_bytes / machine.bytes_per_second, self.linear_operations(len(contexts), len(contexts)) / machine.operations_per_second)

    def prefill_seconds(self, length: int, machine: Machine) -> float:
        linear = self.linear_operations(length, 1) / machine.operations_per_second
        pairs = length * (length + 1) // 2
        return linear + pairs * self.attention_operations / (machine.operations_per_second * ATTENTION_SHARE)

    def serving_seconds(self, prompts: Sequence[int], outputs: Sequence[int], machine: Machine) -> float:
        """All prompts first, then steps of all sequences that still generate, with nothing overlapped. Lengths in tokens."""
        seconds = sum(self.prefill_seconds(length, machine) for length in prompts)
        for made in range(1, max(outputs)):
            seconds += self.decode_seconds([p + made for p, wanted in zip(prompts, outputs) if wanted > made], machine)
        return seconds


def _product_shapes(manifest: Manifest, program: Program) -> list[tuple[int, int]]:
    """Of the matrices of a program's linears; scales and tables are no products."""
    whole = weights_read_whole(manifest, program)
    matrices = [w for w in manifest.weights if w.name in whole and len(w.shape) == 2 and w.dtype != "f32"]
    return [(w.shape[0], w.shape[1]) for w in matrices]
