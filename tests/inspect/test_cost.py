"""What looking costs: the share of a build's time that its snapshots, events and records take, counted within one build."""

import sys
import time
from pathlib import Path

import pytest

import tilewright as tw
from tilewright import compiler
from tilewright.passes.manager import PassManager

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import random_checkpoint

MOST = 0.03  # of a build
LAYERS = 8  # of Qwen3-0.6B, as wide as they are; passes and snapshots take longer with each layer, and so does the rest
HOOKS = [(PassManager, "_dump_import"), (PassManager, "_dump_row"), (compiler, "inspection_files")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_checkpoint.write_checkpoint("qwen3-0.6b", tmp_path_factory.mktemp("wide") / "model", layers=LAYERS)


def test_inspection_takes_3_percent_of_a_build_at_most(model, tmp_path, monkeypatch):
    """On the CPU target without quantization, where nothing else takes long: kernels for a GPU are compiled for a minute more."""
    spent = dict.fromkeys((name for _, name in HOOKS), 0.0)

    def count(owner, name):
        hook = getattr(owner, name)

        def counted(*args, **options):
            started = time.perf_counter()
            try:
                return hook(*args, **options)
            finally:
                spent[name] += time.perf_counter() - started

        monkeypatch.setattr(owner, name, counted)

    for owner, name in HOOKS:
        count(owner, name)
    monkeypatch.setenv("TILEWRIGHT_INSPECT", "1")
    started = time.perf_counter()
    tw.compile(model, tmp_path / "engine", target="cpu", max_input_len=512, max_output_len=512)
    whole = time.perf_counter() - started
    assert all(spent.values()) and (tmp_path / "engine" / "inspect" / "passes" / "00-import.ir").is_file()
    print(f"{sum(spent.values()):.2f} s of {whole:.1f} s: {spent}")
    assert sum(spent.values()) <= MOST * whole
