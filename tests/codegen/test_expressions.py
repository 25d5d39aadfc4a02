"""The table from op to text, against the reference; places of tiles in views."""

import pytest
import torch
import torch.nn.functional as F

import tilewright.ir.ops  # noqa: F401
from tilewright.codegen.expressions import TORCH_DTYPES, is_pointwise, literal, torch_pointwise, triton_pointwise
from tilewright.codegen.index import At, Index, broadcast_at, narrow, reshape_at, widen
from tilewright.ir.errors import CodegenError
from tilewright.ir.opdef import OPS
from tilewright.ir.reference import REFERENCES
from tilewright.ir.types import TensorType

ATTRS = {"pow": {"exponent": 2.5}, "cast": {"dtype": "f16"}, "gelu": {"approximate": "tanh"}}
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "less", "equal")
POINTWISE = sorted(name for name, definition in OPS.items() if definition.pointwise)


@pytest.mark.parametrize("name", POINTWISE)
def test_torch_text_is_the_reference(name):
    x, y = (torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)) + 0.25 for seed in (11, 12))
    operands = {"x": x, "y": y} if name in BINARY else {"c": x < y, "x": x, "y": y} if name == "where" else {"x": x}
    attrs = OPS[name].complete(ATTRS.get(name, {}))
    types = [TensorType("f32", (5, 7))] * len(operands) + [TensorType(str(attrs.get("dtype", "f32")), (5, 7))]
    text = torch_pointwise(name, list(operands), attrs, types)
    expected = REFERENCES[name](*operands.values(), **attrs)
    torch.testing.assert_close(eval(text, {"torch": torch, "F": F}, operands), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("reverse", [False, True])
def test_torch_text_with_a_number_is_the_reference(name, reverse):
    if reverse and "reverse" not in OPS[name].attrs:
        return
    x = torch.tensor([[-2, 2, 7]], dtype=torch.int32)
    attrs = OPS[name].complete({"scalar": 2, **({"reverse": True} if reverse else {})})
    text = torch_pointwise(name, ["x"], attrs, [TensorType("i32", (1, 3))] * 2)
    assert torch.equal(eval(text, {"torch": torch}, {"x": x}), REFERENCES[name](x, **attrs))


def test_every_pointwise_op_has_both_texts():
    for name in POINTWISE:
        assert is_pointwise(name), name
        types = [TensorType("f32", (3,))] * 2
        operands = ["x", "x", "x"] if name == "where" else ["x"]
        attrs = {**ATTRS.get(name, {}), **({"scalar": 2.0} if name in BINARY else {})}
        assert "x" in triton_pointwise(name, operands, OPS[name].complete(attrs), types)


def test_an_op_outside_the_table_is_named():
    with pytest.raises(CodegenError, match="frobnicate: has no expression"):
        triton_pointwise("frobnicate", ["x"], {}, [TensorType("f32", (3,))] * 2)


def test_casts_round_and_go_on_in_f32():
    cast = lambda source, dtype: triton_pointwise("cast", ["x"], {"dtype": dtype}, [TensorType(source, (3,)), TensorType(dtype, (3,))])  # noqa: E731
    assert cast("f32", "bf16") == "x.to(tl.bfloat16).to(tl.float32)"
    assert cast("bf16", "f32") == "x" and cast("i32", "f32") == "x.to(tl.float32)" and cast("f32", "i32") == "x.to(tl.int32)"


def test_infinities_are_written_out():
    assert [eval(literal(x)) for x in (float("inf"), float("-inf"), -1e-5, 3)] == [float("inf"), float("-inf"), -1e-5, 3]
    assert eval(TORCH_DTYPES["bf16"], {"torch": torch}) is torch.bfloat16


def places(at, rows, columns):
    """What the two index texts give for every place."""
    indices = [{"row": r, "column": c} for r in range(rows) for c in range(columns)]
    return [(eval(at.row.text, {}, i), eval(at.column.text, {}, i)) for i in indices]


@pytest.mark.parametrize("old, new", [((6, 4), (2, 12)), ((2, 12), (6, 4)), ((4, 9), (6, 6)), ((5, 3), (5, 3)), ((2, 3, 4), (2, 12))])
def test_reshape_keeps_the_flat_place(old, new):
    shape = lambda s: TensorType("f32", ("T", *s[1:]))  # noqa: E731
    at = reshape_at(shape(old), shape(new), At(Index("row"), Index("column")))
    rows, width = new[0], new[-1]
    flat = [r * old[-1] + c for r, c in places(at, rows, width)]
    assert flat == list(range(rows * width))


def test_widening_and_narrowing_give_the_same_names_back():
    at = At(Index("row", ("a",)), Index("column", ("b",)))
    wide = widen(at, 8, 3)
    assert wide.column.masks == ("a", "b")
    assert narrow(wide, 8, 3) == at


def test_a_row_that_knows_its_parts_is_not_divided():
    wide = widen(At(Index("row", parts=(3, "token", "head")), Index("column")), 8, 3)
    assert wide.row.text == "token" and wide.column.text == "(head * 8 + column)"


@pytest.mark.parametrize("own, row", [(("T", 1, 4), 1), ((3, 4), 2), ((1, 4), 0), ((4,), 0), (("T", 3, 4), 5)])
def test_broadcast_rows(own, row):
    at = broadcast_at(TensorType("f32", own), TensorType("f32", ("T", 3, 4)), At(Index("row"), Index("column")))
    assert eval(at.row.text, {}, {"row": 5}) == row and at.column.text == "column"
