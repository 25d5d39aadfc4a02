"""What every test may rely on: few threads, fixed seeds, and `gpu` tests that skip where no CUDA device is."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> int:
    """Each test starts torch's generator from the same seed, whatever ran before it."""
    torch.manual_seed(20240817)
    return 20240817


@pytest.fixture
def generator(seeded: int) -> torch.Generator:
    return torch.Generator().manual_seed(seeded)
