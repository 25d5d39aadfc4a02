"""Every generated kernel of every tiny model is compiled for every architecture, on a machine without a GPU.

In bf16 with int8 weights, which has every kind of kernel; f32 is compiled for sm_90 where its engines are built.
"""

import pytest
import torch
import zoo
from serving import LIMITS, checkpoint_of

import tilewright as tw
from tilewright.codegen.aot import SHARED_LIMITS, compile_all
from tilewright.codegen.lower import lower
from tilewright.compiler import bound_dims
from tilewright.limits import AskedLimits
from tilewright.passes.regions import build_schedules, default_regimes

ARCHS = ("sm_80", "sm_90", "sm_100")


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_every_kernel_compiles_within_the_limits_of_its_architecture(name):
    optimized = tw.optimize(tw.trace(checkpoint_of(name, torch.bfloat16)), quantize="int8")
    limits = AskedLimits(**LIMITS).choose(optimized.info.max_positions)
    bound_dims(optimized.graph, limits)
    for arch in ARCHS:
        schedules = build_schedules(optimized.graph, default_regimes(arch, max_tokens=limits.max_tokens, max_batch_size=limits.max_batch_size))
        lowered = lower(optimized.graph, schedules, target=arch, limits=limits)
        compiled = compile_all(lowered.kernels, lowered.sources, [arch], jobs=1)
        assert {kernel for kernel, _ in compiled} == {kernel.name for kernel in lowered.kernels}
        for (kernel, _), result in compiled.items():
            assert result.cubin[:4] == b"\x7fELF", kernel
            assert result.binary.shared_bytes <= SHARED_LIMITS[arch], kernel
