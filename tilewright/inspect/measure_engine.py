"""Level 3 of inspection: what `check --save` and `profile` keep, of an engine that has just been built."""

from __future__ import annotations

from tilewright.engine import Engine
from tilewright.inspect.check import check, choose_device
from tilewright.inspect.perf import CONTEXT, profile_here, save_profile
from tilewright.inspect.run import load
from tilewright.ir.weights import Weights
from tilewright.runtime import LLM


def measure_engine(engine: Engine, weights: Weights) -> str:
    """What was found, in one line. An engine for a GPU that is not here has errors, from the interpreter, and no times."""
    found = check(load(engine.path), weights=weights)
    found.save(engine.path / "inspect" / "numerics")
    said = f"{len(found.red)} of {len(found.values)} values and {len(found.launches)} launches are red"
    if choose_device(engine.manifest.target, None) == "cpu":
        return f"{said}; no times: they need a GPU"
    llm, limits = LLM(engine.path), engine.manifest.limits
    profile = profile_here(llm, batch=1, context=min(CONTEXT, limits.max_input_len + limits.max_output_len - 2))
    save_profile(engine.path, profile, llm.engine.backend.device)
    return f"{said}; a decode step takes {profile.step_us:.0f} us"
