"""The table from op to expression: Triton text over f32 tiles and torch text over tensors, for the ops that work element by element.

Pointwise kernels, reductions, prologues and epilogues all read it. Knows neither kernels nor where operands come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tilewright.ir.errors import CodegenError
from tilewright.ir.opdef import Attr
from tilewright.ir.types import FLOATS, TensorType

Attrs = Mapping[str, Attr]

TRITON_DTYPES = {
    "f64": "tl.float64", "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16",
    "i64": "tl.int64", "i32": "tl.int32", "i8": "tl.int8", "i1": "tl.int1",
}  # fmt: skip
TORCH_DTYPES = {
    "f64": "torch.float64", "f32": "torch.float32", "f16": "torch.float16", "bf16": "torch.bfloat16",
    "i64": "torch.int64", "i32": "torch.int32", "i8": "torch.int8", "i1": "torch.bool",
}  # fmt: skip
POINTERS = {"f64": "*fp64", "f32": "*fp32", "f16": "*fp16", "bf16": "*bf16", "i64": "*i64", "i32": "*i32", "i8": "*i8", "i1": "*i1"}

# Triton text of one operand x (an f32 tile). tanh and gelu use the logistic function: Triton has no tanh outside libdevice.
_TRITON_UNARY: dict[str, str] = {
    "neg": "-{x}", "abs": "tl.abs({x})", "exp": "tl.exp({x})", "sqrt": "tl.sqrt({x})", "rsqrt": "tl.rsqrt({x})", "cos": "tl.cos({x})",
    "sin": "tl.sin({x})", "tanh": "2.0 * tl.sigmoid(2.0 * {x}) - 1.0", "sigmoid": "tl.sigmoid({x})", "erf": "tl.erf({x})",
    "relu": "tl.maximum({x}, 0.0)", "silu": "{x} * tl.sigmoid({x})", "log": "tl.log({x})", "floor": "tl.floor({x})",
    "round": "tl.where(tl.abs({x}) < 4194304.0, ({x} + 12582912.0) - 12582912.0, {x})",  # an f32 of that size has no room for halves
    "gelu": f"0.5 * {{x}} * (1.0 + tl.erf({{x}} * {math.sqrt(0.5)!r}))",
    "gelu_tanh": f"{{x}} * tl.sigmoid({2 * math.sqrt(2 / math.pi)!r} * ({{x}} + 0.044715 * {{x}} * {{x}} * {{x}}))",
}  # fmt: skip
_TORCH_UNARY: dict[str, str] = {
    "neg": "-{x}", **{n: f"torch.{n}({{x}})" for n in ("abs", "exp", "sqrt", "rsqrt", "cos", "sin", "tanh", "sigmoid", "erf", "relu")},
    **{n: f"torch.{n}({{x}})" for n in ("log", "floor", "round")},
    "silu": "F.silu({x})", "gelu": "F.gelu({x})", "gelu_tanh": 'F.gelu({x}, approximate="tanh")',
}  # fmt: skip
_INFIX = {"add": "{x} + {y}", "sub": "{x} - {y}", "mul": "{x} * {y}", "div": "{x} / {y}", "less": "{x} < {y}", "equal": "{x} == {y}"}
_TRITON_BINARY = {**_INFIX, "maximum": "tl.maximum({x}, {y})", "minimum": "tl.minimum({x}, {y})"}
_TORCH_BINARY = {**_INFIX, "maximum": "torch.maximum({x}, {y})", "minimum": "torch.minimum({x}, {y})"}
_TORCH_LIMIT = {"maximum": "{x}.clamp(min={y})", "minimum": "{x}.clamp(max={y})"}  # the other side is a number
# By way of |x|, then the sign: an odd whole y keeps it, and no other y but a whole one has a negative x.
_TRITON_POWER = (
    "tl.where({y} == 0.0, 1.0, tl.exp({y} * tl.log(tl.abs({x})))"
    " * tl.where({x} >= 0.0, 1.0, tl.where(tl.floor({y}) != {y}, float('nan'), 1.0 - 2.0 * tl.abs({y} - 2.0 * tl.floor({y} * 0.5)))))"
)
_OWN: dict[str, tuple[str, str]] = {}  # ops declared outside the package: Triton text, torch text


def register_expression(op: str, *, triton: str, torch: str) -> None:
    """Text of a pointwise op declared outside the package: `{x}` and `{y}` are its operands (f32 tiles, or tensors), `{name}` an attribute.

    Raises CodegenError for an op that has text already.
    """
    if is_pointwise(op):
        raise CodegenError(f"expression {op}", "the op has one already", "choose another name for the op")
    _OWN[op] = (triton, torch)


def _fill(text: str, operands: Sequence[str], attrs: Attrs) -> str:
    return text.format(**dict(zip("xyz", operands)), **{name: literal(value) for name, value in attrs.items()})


def literal(number: Attr) -> str:
    """A number as source text; infinities are written out."""
    if isinstance(number, float) and math.isinf(number):
        return 'float("inf")' if number > 0 else 'float("-inf")'
    return repr(number)


def is_pointwise(op: str) -> bool:
    return op in _TRITON_BINARY or op in _TRITON_UNARY or op in ("cast", "pow", "where") or op in _OWN


def triton_activation(name: str, x: str) -> str:
    """One of ops.semantic.ACTIVATIONS, or a unary op, of the f32 tile named x."""
    return _TRITON_UNARY[name].format(x=x)


def torch_activation(name: str, x: str) -> str:
    return _TORCH_UNARY[name].format(x=x)


def triton_pointwise(op: str, operands: Sequence[str], attrs: Attrs, types: Sequence[TensorType]) -> str:
    """Text of the op over tiles named by `operands`; floats are f32 tiles. types: of the operands, then of the result."""
    if op in _OWN:
        return _fill(_OWN[op][0], operands, attrs)
    if op == "cast":
        return triton_round(operands[0], types[0].dtype, types[-1].dtype)
    if op == "where":
        return "tl.where({}, {}, {})".format(*operands)
    if op == "pow" and len(operands) == 2:
        return _TRITON_POWER.format(x=operands[0], y=operands[1])
    if op == "pow":
        return _triton_power(operands[0], float(attrs["exponent"]))  # type: ignore[arg-type]
    if op in _TRITON_BINARY:
        x, y = _two_sides(operands, attrs)
        return _TRITON_BINARY[op].format(x=x, y=y)
    return triton_activation(_unary_name(op, attrs), operands[0])


def triton_round(x: str, source: str, dtype: str) -> str:
    """x as `dtype`: a float is rounded to it and goes on as f32, since tiles are computed in f32."""
    if dtype not in FLOATS:
        return f"{x}.to({TRITON_DTYPES[dtype]})"
    if dtype == "f32" or source == dtype:
        return f"{x}.to(tl.float32)" if source not in FLOATS else x
    return f"{x}.to({TRITON_DTYPES[dtype]}).to(tl.float32)"


def torch_pointwise(op: str, operands: Sequence[str], attrs: Attrs, types: Sequence[TensorType]) -> str:
    """Text of the op over tensors named by `operands`, as in the reference. types: of the operands, then of the result."""
    if op in _OWN:
        return _fill(_OWN[op][1], operands, attrs)
    if op == "cast":
        return f"{operands[0]}.to({TORCH_DTYPES[str(attrs['dtype'])]})"
    if op == "where":
        return "torch.where({}, {}, {})".format(*operands)
    if op == "pow":
        return f"torch.pow({operands[0]}, {operands[1] if len(operands) == 2 else literal(attrs['exponent'])})"
    if op not in _TORCH_BINARY:
        return torch_activation(_unary_name(op, attrs), operands[0])
    x, y = _two_sides(operands, attrs)
    if len(operands) == 1 and op in _TORCH_LIMIT:
        return _TORCH_LIMIT[op].format(x=x, y=y)
    text = _TORCH_BINARY[op].format(x=x, y=y)
    keeps_dtype = types[-1].dtype in FLOATS or op in ("less", "equal") or (op != "div" and not isinstance(attrs.get("scalar"), float))
    return text if keeps_dtype else f"({text}).to({TORCH_DTYPES[types[-1].dtype]})"


def _two_sides(operands: Sequence[str], attrs: Attrs) -> tuple[str, str]:
    x = operands[0]
    y = operands[1] if len(operands) > 1 else literal(attrs["scalar"])
    return (y, x) if attrs.get("reverse") else (x, y)


def _unary_name(op: str, attrs: Attrs) -> str:
    name = "gelu_tanh" if op == "gelu" and attrs.get("approximate") == "tanh" else op
    if name not in _TRITON_UNARY:
        raise CodegenError(op, "has no expression", "add it to the table in codegen/expressions.py")
    return name


def _triton_power(x: str, exponent: float) -> str:
    special: dict[float, Callable[[], str]] = {
        1.0: lambda: x, 2.0: lambda: f"{x} * {x}", 3.0: lambda: f"{x} * {x} * {x}", 4.0: lambda: f"({x} * {x}) * ({x} * {x})",
        0.5: lambda: f"tl.sqrt({x})", -0.5: lambda: f"tl.rsqrt({x})", -1.0: lambda: f"1.0 / {x}",
    }  # fmt: skip
    return special[exponent]() if exponent in special else f"tl.exp({literal(exponent)} * tl.log({x}))"
