"""Every op: what it infers is what its reference gives, on fresh random data and odd sizes; what it refuses, it refuses in a sentence."""

import pytest
import torch

from tilewright.ir import ops  # noqa: F401
from tilewright.ir.errors import GraphError
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import interpret
from tilewright.ir.opdef import OPS, op
from tilewright.ir.reference import REFERENCES, TORCH_DTYPES, Batch
from tilewright.ir.types import Bounds, TensorType

T, S = 11, 3
DIMS = {"T": T, "S": S}

X, WIDE = ("f32", ("T", 24)), ("f32", ("T", 48))
CASES: list[tuple[str, list[tuple[str, tuple[int | str, ...]]], dict]] = [
    *[(name, [X, X], {}) for name in ("add", "sub", "mul", "div", "maximum", "minimum")],
    *[(name, [X], {"scalar": 2.5}) for name in ("add", "sub", "mul", "div", "maximum", "minimum")],
    *[(name, [X], {}) for name in ("neg", "abs", "exp", "cos", "sin", "tanh", "sigmoid", "erf", "relu", "silu", "gelu", "sqrt", "rsqrt")],
    ("add", [("bf16", ("T", 24)), ("bf16", (24,))], {}),
    ("mul", [("f32", ("T", 3, 8)), ("f32", ("T", 1, 8))], {}),
    ("sub", [X], {"scalar": 1.0, "reverse": True}),
    ("gelu", [X], {"approximate": "tanh"}),
    ("pow", [X], {"exponent": 2.0}),
    ("cast", [X], {"dtype": "bf16"}),
    ("reshape", [X], {"shape": ("T", 3, 8)}),
    ("transpose", [("f32", ("T", 3, 8))], {"perm": (1, 0, 2)}),
    ("expand", [("f32", ("T", 1, 8))], {"shape": ("T", 3, 8)}),
    ("slice", [X], {"axis": 1, "start": 5, "stop": 22, "step": 3}),
    ("concat", [X, WIDE], {"axis": -1}),
    ("interleave", [("f32", (7, 5)), ("f32", (7, 5))], {}),
    ("iota", [], {"size": 9}),
    ("full", [], {"shape": (2, 3), "value": 0.5, "dtype": "f16"}),
    *[(name, [X], {"axis": -1, "keepdim": keep}) for name in ("mean", "sum", "max") for keep in (True, False)],
    ("sum", [("i32", ("T", 24))], {}),
    ("pow", [X, X], {}),
    ("less", [X, X], {}),
    ("equal", [X], {"scalar": 0.5}),
    ("where", [("i1", ("T", 24)), X, ("f32", (24,))], {}),
    ("softmax", [X], {}),
    ("embedding", [("f16", (13, 24)), ("i32", ("T",))], {}),
    ("gather_rows", [X, ("i32", ("S",))], {}),
    ("linear", [X, ("f32", (7, 24)), ("f32", (7,))], {}),
    ("matmul", [("f32", (3, "T", 8)), ("f32", (3, 8, 5))], {}),
    ("rms_norm", [X, ("f32", (24,))], {"eps": 1e-5, "rounding": "after_scale", "offset": 1.0}),
    ("layer_norm", [X, ("f32", (24,)), ("f32", (24,))], {"eps": 1e-5}),
    ("rotary", [X, ("f32", ("T", 8)), ("f32", ("T", 8))], {"head_dim": 8}),
    ("rotary", [X, ("f32", ("T", 4)), ("f32", ("T", 4))], {"head_dim": 8, "layout": "interleaved"}),
    ("gated", [X, X], {"activation": "silu"}),
    ("gated", [WIDE], {"activation": "gelu_tanh"}),
    ("attention", [X, ("f32", ("T", 8)), ("f32", ("T", 16))], {"heads": 3, "kv_heads": 1, "scale": 0.3, "layer": 0, "window": 4, "softcap": 9.0}),
    ("attention", [X, X, X, ("f32", (3,))], {"heads": 3, "kv_heads": 3, "scale": 0.3, "layer": 0}),
]


class RandomWeights:
    def load(self, name):
        raise AssertionError(f"no weight {name} is needed")


@pytest.mark.parametrize("name, operands, attrs", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_reference_gives_the_inferred_type(name, operands, attrs):
    graph = Graph("one", {"T": Bounds(1, 64), "S": Bounds(1, 64)})
    values, data = [], {}
    for i, (dtype, shape) in enumerate(operands):
        values.append(graph.add_input(f"x{i}", TensorType(dtype, shape)))
        sizes = [DIMS[d] if isinstance(d, str) else d for d in shape]
        data[f"x{i}"] = torch.randint(0, 9, sizes, dtype=torch.int32) if dtype == "i32" else (torch.rand(sizes) + 0.1).to(TORCH_DTYPES[dtype])
    graph.outputs = graph.emit(name, values, attrs).results
    (result,) = interpret(graph, data, RandomWeights())  # interpret compares type and shape with what was inferred
    assert torch.isfinite(result.float()).all()


def test_every_op_has_a_reference_and_a_formula():
    assert set(OPS) == set(REFERENCES)
    assert all(definition.doc for definition in OPS.values())


@pytest.mark.parametrize(
    "name, operands, attrs, said",
    [
        ("add", [X], {}, "takes a second operand or the attribute scalar"),
        ("add", [X, ("f16", ("T", 24))], {}, "f32[T, 24] and f16[T, 24]; cast one"),
        ("add", [X, WIDE], {}, "do not broadcast at axis -1"),
        ("linear", [X, ("f32", (7, 25))], {}, "x f32[T, 24] and weight f32[7, 25] differ in K"),
        ("reshape", [X], {"shape": ("T", 25)}, "[T, 24] cannot become [T, 25]"),
        ("reshape", [X], {"shape": ("S", 24)}, "cannot become"),
        ("slice", [X], {"axis": 0, "start": 0, "stop": 1}, "must be a fixed size"),
        ("slice", [X], {"axis": 1, "start": 4, "stop": 25}, "4:25:1 of axis 1"),
        ("rms_norm", [X, ("f32", (23,))], {"eps": 1e-5}, "weight f32[23] does not fit"),
        ("rms_norm", [X], {}, "attribute 'eps' is missing"),
        ("rms_norm", [X], {"eps": 1e-5, "epsilon": 1.0}, "no attribute 'epsilon'"),
        ("rotary", [X, ("f32", ("T", 16)), ("f32", ("T", 16))], {"head_dim": 8}, "R <= head_dim"),
        ("attention", [X, X, X], {"heads": 3, "kv_heads": 2, "scale": 1.0, "layer": 0}, "heads=3 is not a multiple of kv_heads=2"),
        ("gated", [X], {"activation": "swish"}, "activation='swish'"),
        ("embedding", [X, X], {}, "must be i32 or i64"),
        ("transpose", [X], {"perm": (1, 1)}, "must order the axes 0 to 1"),
    ],
)
def test_wrong_operands_are_refused_with_both_sides_quoted(name, operands, attrs, said):
    graph = Graph("one", {"T": Bounds(1, 64), "S": Bounds(1, 64)})
    values = [graph.add_input(f"x{i}", TensorType(*operand)) for i, operand in enumerate(operands)]
    with pytest.raises(GraphError) as caught:
        graph.emit(name, values, attrs)
    assert said in str(caught.value) and str(caught.value).startswith(name)


def test_attention_keeps_requests_apart():
    graph = Graph("one", {"T": Bounds(1, 64)})
    q, k, v = (graph.add_input(n, TensorType("f64", ("T", 8))) for n in "qkv")
    graph.outputs = graph.emit("attention", [q, k, v], {"heads": 2, "kv_heads": 2, "scale": 0.5, "layer": 0}).results
    lengths = [4, 1, 6]
    data = {n: torch.randn(sum(lengths), 8, dtype=torch.float64) for n in "qkv"}
    (together,) = interpret(graph, data, RandomWeights(), batch=Batch.of_lengths(lengths))
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        (alone,) = interpret(graph, {n: t[rows] for n, t in data.items()}, RandomWeights())
        torch.testing.assert_close(together[rows], alone)
        start += length


def test_quantized_linear_is_within_half_a_step_of_each_weight():
    quantized = REFERENCES["quantize"](torch.randn(7, 33), dtype="i8", scale="f32")
    exact = torch.randn(7, 33) * 3
    quantized = REFERENCES["quantize"](exact, dtype="i8", scale="f32")
    assert ((quantized.dequantize(torch.float32) - exact).abs() <= quantized.scale[:, None] * 0.501).all()
    assert quantized.data.abs().amax(1).eq(127).all()


def test_a_row_of_zeros_quantizes_to_zeros():
    quantized = REFERENCES["quantize"](torch.zeros(2, 4), dtype="i8", scale="f32")
    assert quantized.dequantize(torch.float32).eq(0).all()


def test_declaring_an_op_twice_is_refused():
    with pytest.raises(GraphError, match="declared at"):

        @op()
        def add(x):
            """again"""
            return x
