"""Graphs by hand for the IR's tests: a stack of small layers, with or without alternating attributes."""

from tilewright.ir import ops  # noqa: F401
from tilewright.ir.graph import Graph
from tilewright.ir.types import Bounds, Loc, TensorType


def stack(layers: int, *, period: int = 1, hidden: int = 24, extra_in: int | None = None) -> Graph:
    """`layers` layers of norm, linear, residual; with a period, every period-th layer caps its scores. `extra_in`: one more op in that layer."""
    graph = Graph("stack", {"T": Bounds(1, 64), "S": Bounds(1, 8)})
    ids = graph.add_input("ids", TensorType("i32", ("T",)))
    rows = graph.add_input("rows", TensorType("i32", ("S",)))
    table = graph.add_param("model.embed.weight", TensorType("f32", (31, hidden)))
    for i in range(layers):
        graph.add_param(f"model.layers.{i}.norm.weight", TensorType("f32", (hidden,)))
        graph.add_param(f"model.layers.{i}.attn.weight", TensorType("f32", (3 * hidden, hidden)))
    h = graph.emit("embedding", [table, ids], names=["model.embed"], loc=Loc(("model.embed",))).result
    for i in range(layers):
        h = _layer(graph, h, f"model.layers.{i}", i, hidden, capped=period > 1 and i % period == period - 1, extra=i == extra_in)
    last = graph.emit("gather_rows", [h, rows], names=["model.last"]).result
    graph.outputs = [graph.emit("linear", [last, table], names=["head"], loc=Loc(("head",))).result]
    graph.sort()
    return graph


def _layer(graph: Graph, h, path: str, index: int, hidden: int, *, capped: bool, extra: bool):
    here = Loc((f"{path}.attn",), ("model.py:7",))
    norm = graph.emit("rms_norm", [h, graph.params[f"{path}.norm.weight"]], {"eps": 1e-5}, names=[f"{path}.norm"], loc=Loc((f"{path}.norm",))).result
    quantized = graph.emit("quantize", [graph.params[f"{path}.attn.weight"]], names=[f"{path}.attn.weight.i8"], loc=here).result
    qkv = graph.emit("linear", [norm, quantized], names=[f"{path}.attn.qkv"], loc=here).result
    parts = []
    for j, name in enumerate("qkv"):
        cut = {"axis": 1, "start": j * hidden, "stop": (j + 1) * hidden}
        parts.append(graph.emit("slice", [qkv], cut, names=[f"{path}.attn.{name}"], loc=here).result)
    attrs = {"heads": 2, "kv_heads": 2, "scale": 0.25, "layer": index} | ({"softcap": 30.0} if capped else {})
    context = graph.emit("attention", parts, attrs, names=[f"{path}.attn"], loc=here).result
    if extra:
        context = graph.emit("relu", [context], names=[f"{path}.attn.extra"], loc=here).result
    return graph.emit("add", [h, context], names=[f"{path}.out"], loc=Loc((path,))).result
