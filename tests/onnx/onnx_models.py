"""Tiny models exported and run: what the tests of both directions share."""

import onnx
import onnxruntime
import torch
import zoo

import tilewright as tw
from tilewright.ir.interpreter import interpret

SEMANTIC = "simplify, drop-dead-ops, raise-bias, raise-rms-norm, raise-gelu, raise-rotary, raise-gated, tabulate-positions{length=64}"
STAGES = {
    "import": lambda traced: traced,
    "semantic": lambda traced: tw.optimize(traced, SEMANTIC),
    "optimized": lambda traced: tw.optimize(traced, length=64),
    "int8": lambda traced: tw.optimize(traced, quantize="int8", length=64),
}


def fresh_steps(lengths=(1, 5, 23, 40), seed=3):
    """Prompts of ragged lengths, each with other rows asked for."""
    generator = torch.Generator().manual_seed(seed)
    for length in lengths:
        ids = torch.randint(0, zoo.VOCAB, (length,), generator=generator, dtype=torch.int32)
        rows = torch.tensor(sorted({0, length // 2, length - 1}), dtype=torch.int32)
        yield {"ids": ids, "positions": torch.arange(length, dtype=torch.int32), "rows": rows}


def run_file(file, step):
    """The first output of a file in onnxruntime."""
    session = onnxruntime.InferenceSession(str(file))
    (logits, *_) = session.run(None, {name: tensor.numpy() for name, tensor in step.items()})
    return torch.from_numpy(logits)


def largest_error(file, model):
    """Of onnxruntime against the reference interpreter, over fresh steps."""
    return max(float((run_file(file, s) - interpret(model.graph, s, model.weights)[0]).abs().max()) for s in fresh_steps())


def operators(file):
    return [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
