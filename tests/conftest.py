"""What every test may rely on: one thread, fixed seeds, a model of one config traced once, and `gpu` tests that skip where no CUDA device is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ALONE = {"test_every_kernel_compiles", "test_docs", "test_repository"}  # their tests share nothing
SHARED = {"studied": "studied", "recorded": "recorded", "reported": "recorded"}  # what a test imports -> tests that use the same engines


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the tensors here are so small that a second one only waits


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.iter_markers("xdist_group")) and (name := group_of(item)):
            item.add_marker(pytest.mark.xdist_group(name))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one process, and what they share is built once: those of a file, or of files that read the same engines."""
    module = item.path.stem
    if module in ALONE or "_template" in module:
        return ""
    imported = item.path.read_text(encoding="utf-8")
    return next((group for name, group in SHARED.items() if f"import {name}" in imported or f"from {name} " in imported), module)


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[Any]:
    """Gives trace_config as it is, for tests of tracing itself; others get a copy of the graph that the same config gave before."""
    from tilewright.frontend import trace

    whole, kept = trace.trace_config, {}

    def trace_config(config: Any, dtype: Any = None, max_model_len: int | None = None, cls: Any = None) -> Any:
        key = (type(config), config.to_json_string(use_diff=False), str(dtype), max_model_len, cls)
        if key not in kept:
            kept[key] = whole(config, dtype, max_model_len, cls)
        capture, imported = kept[key]
        return capture, dataclasses.replace(imported, graph=imported.graph.copy())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_config", trace_config)
        yield whole


@pytest.fixture
def traced_anew(traced_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trace of the test is one."""
    monkeypatch.setattr("tilewright.frontend.trace.trace_config", traced_once)


@pytest.fixture(autouse=True)
def seeded() -> int:
    """Each test starts torch's generator from the same seed, whatever ran before it."""
    torch.manual_seed(20240817)
    return 20240817


@pytest.fixture
def generator(seeded: int) -> torch.Generator:
    return torch.Generator().manual_seed(seeded)
