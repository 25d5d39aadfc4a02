"""Runs the node cases of onnx.backend.test whose operators are all claimed, and prints the share that the importer and interpreter get right.

Inputs that decide shapes (a Reshape's shape, a reduction's axes) are given while importing, as an initializer would be. Cases in types that the
IR does not have (8-bit floats, 4- and 2-bit integers, strings) are counted apart. Run: python tests/onnx/coverage_of_nodes.py [--failures]
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from tilewright.frontend import onnx_importer  # noqa: F401  # fills the table
from tilewright.frontend.onnx_import import import_onnx
from tilewright.frontend.onnx_table import CLAIMS
from tilewright.frontend.onnx_tensors import DTYPES
from tilewright.ir.errors import TilewrightError
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import TORCH_DTYPES

TWO_STEPS = {torch.float16: 2 / 2**10, torch.bfloat16: 2 / 2**7}  # of a narrow type's last digit: another order of the same sums


@dataclass(frozen=True)
class Outcome:
    name: str
    operator: str  # that the case is about
    status: str  # passed, failed, or no type
    why: str = ""


def cases() -> list[Any]:
    """Node cases whose operators are all claimed."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return [case for case in found if all(node.op_type in CLAIMS and node.domain in ("", "ai.onnx") for node in case.model.graph.node)]


def run_case(case: Any) -> Outcome:
    operator = case.model.graph.node[-1].op_type
    kinds = types_of(case.model)
    if not kinds <= set(DTYPES):
        return Outcome(case.name, operator, "no type", ", ".join(sorted(TensorProto.DataType.Name(k) for k in kinds - set(DTYPES))))
    try:
        for inputs, outputs in case.data_sets:
            check(case, list(inputs), list(outputs))
    except (TilewrightError, AssertionError, RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        return Outcome(case.name, operator, "failed", " ".join(str(error).split())[:150])
    return Outcome(case.name, operator, "passed")


def types_of(model: ModelProto) -> set[int]:
    """Element types of inputs and outputs; those that are no tensors count as no type."""
    values = [*model.graph.input, *model.graph.output]
    casts = [a.i for node in model.graph.node for a in node.attribute if node.op_type == "Cast" and a.name == "to"]
    return {v.type.tensor_type.elem_type if v.type.HasField("tensor_type") else TensorProto.STRING for v in values} | set(casts)


def check(case: Any, inputs: list[Any], outputs: list[Any]) -> None:
    graph = case.model.graph
    named = {info.name: as_array(data) for info, data in zip(graph.input, inputs)}
    known = {name: named[name].reshape(-1).tolist() for name in known_inputs(case.model) if np.issubdtype(named[name].dtype, np.integer)}
    model = import_onnx(case.model, known=known)
    fed = {v.name: as_tensor(named[i.name]) for v, i in zip(model.graph.inputs, (i for i in graph.input if i.name not in known))}
    found = interpret(model.graph, fed, model.weights)
    assert len(found) == len(outputs), f"{len(found)} outputs, expected {len(outputs)}"
    for got, expected in zip(found, outputs):
        wanted = as_tensor(as_array(expected))
        assert got.dtype == wanted.dtype, f"gives {got.dtype}, expected {wanted.dtype}"
        torch.testing.assert_close(got, wanted, rtol=max(case.rtol, TWO_STEPS.get(wanted.dtype, 0.0)), atol=case.atol, equal_nan=True)


def known_inputs(model: ModelProto) -> set[str]:
    inputs = {i.name for i in model.graph.input}
    return {n.input[i] for n in model.graph.node for i in CLAIMS[n.op_type].known if i < len(n.input)} & inputs


def as_array(data: Any) -> np.ndarray:
    return numpy_helper.to_array(data) if isinstance(data, TensorProto) else np.asarray(data)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """In the type that the importer holds it in."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    from onnx import helper

    dtype = TORCH_DTYPES[DTYPES[helper.np_dtype_to_tensor_dtype(array.dtype)]]
    return torch.from_numpy(np.ascontiguousarray(array.astype(str(dtype).removeprefix("torch.")))).reshape(array.shape)


def outcomes() -> Iterator[Outcome]:
    for case in cases():
        yield run_case(case)


def describe(found: list[Outcome]) -> str:
    typed = [o for o in found if o.status != "no type"]
    passed = sum(o.status == "passed" for o in found)
    lines = [f"{'operator':<20} passed  of  without a type"]
    for operator, total in sorted(Counter(o.operator for o in found).items()):
        mine = Counter(o.status for o in found if o.operator == operator)
        lines.append(f"{operator:<20} {mine['passed']:>6} {total - mine['no type']:>3} {mine['no type'] or '':>4}")
    lines.append(f"{len(CLAIMS)} operators are claimed; {passed} of {len(typed)} cases pass: {passed / len(typed):.1%}")
    lines.append(f"{len(found) - len(typed)} more cases are in types that the IR does not have: {passed / len(found):.1%} of all")
    return "\n".join(lines)


if __name__ == "__main__":
    every = list(outcomes())
    if "--failures" in sys.argv:
        print("\n".join(f"{o.name}: {o.why}" for o in every if o.status == "failed"))
    print(describe(every))
