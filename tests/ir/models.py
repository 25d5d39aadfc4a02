"""Graphs by hand for the IR's tests: stacks of small layers, with alternating attributes or with mixtures of experts."""

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


def mixture(layers: int, *, dense: int, experts: int, hidden: int = 16) -> Graph:
    """The first layers have one product, the others a sum over experts."""
    graph = Graph("mixture", {"T": Bounds(1, 64)})
    h = graph.add_input("x", TensorType("f32", ("T", hidden)))
    for i in range(layers):
        path = f"model.layers.{i}"
        names = [f"{path}.mlp"] if i < dense else [f"{path}.mlp.experts.{e}" for e in range(experts)]
        norm = graph.add_param(f"{path}.norm.weight", TensorType("f32", (hidden,)))
        total = normed = graph.emit("rms_norm", [h, norm], {"eps": 1e-5}, names=[f"{path}.norm"], loc=Loc((f"{path}.norm",))).result
        for name in names:
            weight = graph.add_param(f"{name}.weight", TensorType("f32", (hidden, hidden)))
            made = graph.emit("linear", [normed, weight], names=[f"{name}.out"], loc=Loc((name,))).result
            total = graph.emit("add", [total, made], names=[f"{name}.sum"], loc=Loc((name,))).result
        h = graph.emit("add", [h, total], names=[f"{path}.out"], loc=Loc((path,))).result
    graph.outputs = [graph.emit("relu", [h], names=["last"], loc=Loc(("last",))).result]
    graph.sort()
    return graph
