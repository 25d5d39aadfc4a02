"""Which device an engine is made for, by the names that users give it."""

from __future__ import annotations

import re

from tilewright.environment import read_environment
from tilewright.ir.errors import EngineError

OLDEST = 80  # sm_80; older GPUs have no bfloat16 products


def choose_target(asked: str | None) -> str:
    """cpu, or sm_xx. cuda is this machine's GPU; None is it too, or else cpu. TILEWRIGHT_NO=triton: cpu. Raises EngineError."""
    if "triton" in read_environment().no:
        return "cpu"
    if asked is None:
        return _this_gpu() or "cpu"
    if asked == "cpu":
        return asked
    if asked == "cuda":
        found = _this_gpu()
        if found is None:
            raise EngineError("target 'cuda'", "this machine has no NVIDIA GPU that torch can use", "name one, such as sm_90, or use cpu")
        return found
    match = re.fullmatch(r"sm_(\d{2,3})", str(asked))
    if match is None:
        raise EngineError(f"target {asked!r}", "is none of cpu, cuda and sm_<number>", "an H100 or H200 is sm_90, an A100 sm_80")
    if int(match[1]) < OLDEST:
        raise EngineError(f"target {asked!r}", f"is older than sm_{OLDEST}, the oldest that kernels are made for", "use cpu")
    return asked


def _this_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
