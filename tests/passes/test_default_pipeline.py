"""The default pipeline on every architecture: each pass validated in numbers, each stage through text and back."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zoo

import tilewright as tw
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.pass_cases import check_round_trip

every_architecture = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in zoo.ARCHITECTURES])
_FOLDER = TemporaryDirectory(prefix="tilewright-passes-")


@cache
def traced(name):
    return tw.trace(zoo.save(name, Path(_FOLDER.name) / name))


@every_architecture
def test_every_stage_is_right_in_numbers_and_reads_back(name, tmp_path):
    stages = []

    def check(_, graph):
        text = fold_text(graph)
        if text not in stages[-1:]:
            check_round_trip(graph)
        stages.append(text)

    report = tw.optimize(traced(name), quantize="int8", validate=True, dump=tmp_path, after_each=check).report
    assert len(stages) == len(report.rows)
    for row in report.rows:
        assert row.error is not None and row.error < (0.1 if row.name == "quantize" else 1e-5)
        assert not row.warnings
    texts = {file.name: file.read_text() for file in tmp_path.glob("*.ir")}
    assert is_same_structure(parse_graph(texts.pop("00-import.ir")), traced(name).graph)
    assert set(texts.values()) <= set(stages)


@every_architecture
def test_what_a_model_means_is_found_in_every_layer(name):
    optimized = tw.optimize(traced(name))
    graph, layers = optimized.graph, 2
    assert len(graph.find("attend")) == len(graph.find("write_kv")) == layers
    assert len(graph.find("rotary")) == (0 if name in ("gpt2", "falcon_alibi") else 2 * layers)
    assert not {"pow", "mean", "rsqrt", "cos", "sin", "transpose"} & {op.name for op in graph.ops if not op.is_const}
    assert all(op.attrs["layer"] == i for i, op in enumerate(graph.find("attend")))
    assert len(graph.find("linear")) == 4 * layers + 1  # qkv, output, up, down; and the head


def test_tracing_is_not_changed_by_optimizing():
    before = traced("llama2").graph.copy()
    tw.optimize(traced("llama2"))
    assert is_same_structure(before, traced("llama2").graph)
