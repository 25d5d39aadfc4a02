"""A graph at any stage as an ONNX model, with its weights. Reads graph and weights alone; what each op becomes is in onnx_nodes.

The exported model is the graph's own step over a flattened batch: ids and positions i32[T], rows i32[S], logits f32[S, vocab] for the rows asked
for. It holds no cache and no batch axis: the T tokens are one request's, a whole prompt from its first token on, and attention is causal
over them. Paged ops (write_kv, attend) become that same attention over the step's own keys. Run a prompt by itself, or each of several by itself.
Types are the graph's: onnxruntime on the CPU has no bf16, so a model that is to run there is traced in float32 or float16.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.ir.errors import CodegenError
from tilewright.ir.extras import require
from tilewright.ir.graph import Graph
from tilewright.ir.weights import Weights

if TYPE_CHECKING:
    from onnx import ModelProto

    from tilewright.codegen.onnx_body import GraphBody
    from tilewright.codegen.onnx_emitter import Emitter

LARGE_BYTES = 256 << 20  # models with more weights than this keep them in a file beside the model


def export_onnx(graph: Graph, weights: Weights, out: str | Path, *, external: bool | None = None) -> Path:
    """Writes the graph as `out`, and its weights inside, or beside it in `<out>.data`, one tensor in memory at a time.

    external: weights beside the model (default: where they are large; a protobuf file cannot hold 2 GB). The file passes onnx.checker.
    Raises CodegenError for an op that has no ONNX form, and TilewrightError where the package onnx is missing or `out` cannot be written.
    """
    require("onnx", extra="onnx")
    from tilewright.codegen.onnx_body import GraphBody
    from tilewright.codegen.onnx_emitter import Emitter
    from tilewright.codegen.onnx_store import DataFile, Inside

    out = Path(out)
    body = GraphBody()
    is_large = num_bytes(graph) > LARGE_BYTES if external is None else external
    try:
        with DataFile(out, body) if is_large else Inside(body) as store:
            emitter = Emitter(graph, weights, body, store)
            emitter.emit_all()
            store.write(out, make_model(graph, body, emitter))
    except OSError as error:
        raise CodegenError(str(out), f"cannot be written ({error.strerror or error})", "choose another file") from error
    return out


def num_bytes(graph: Graph) -> int:
    """Bytes of the constants that the step reads, as they will be written."""
    read = {v: None for op in graph.ops if not op.is_const for v in op.inputs if v.is_const}
    return sum(v.type.num_bytes({}) for v in read)


def make_model(graph: Graph, body: GraphBody, emitter: Emitter) -> ModelProto:
    from onnx import helper

    from tilewright.codegen.onnx_body import DOMAIN, IR_VERSION, OPSET
    from tilewright.codegen.onnx_emitter import describe_value, describe_values

    outputs = [describe_value(emitter.output_name(v), v.type) for v in dict.fromkeys(graph.outputs)]
    made = helper.make_graph(
        body.nodes, graph.name, [describe_value(v.name, v.type) for v in graph.inputs], outputs, body.initializers,
        value_info=describe_values(graph, body.nodes), doc_string=__doc__,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(DOMAIN, 1)] if body.functions else [])
    model = helper.make_model(
        made, functions=list(body.functions.values()), opset_imports=opsets, ir_version=IR_VERSION, producer_name="tilewright",
        producer_version=importlib.metadata.version("tilewright"),
    )  # fmt: skip
    helper.set_model_props(model, {f"tilewright.dim.{name}": f"{b.low}..{b.high}" for name, b in graph.dims.items()})
    return model
