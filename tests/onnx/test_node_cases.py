"""The node cases of onnx.backend.test for every operator that is claimed."""

import pytest
from coverage_of_nodes import describe, outcomes

WANTED = {
    "Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Softmax", "MatMul", "Gather", "Cast", "QuantizeLinear",
    "DequantizeLinear", "ReduceMean", "ReduceSum", "ReduceMax", "Add", "Mul", "Gelu", "Where",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return list(outcomes())


def test_every_case_in_a_type_of_the_ir_passes(found):
    failed = [f"{o.name}: {o.why}" for o in found if o.status == "failed"]
    assert not failed, "\n".join(failed)
    assert sum(o.status == "passed" for o in found) > 700, describe(found)


def test_what_decoders_are_made_of_is_claimed(found):
    assert {o.operator for o in found if o.status == "passed"} >= WANTED
