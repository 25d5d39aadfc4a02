"""Ahead-of-time compilation with no GPU: resources, determinism, errors that name the kernel, workers and their cache."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tilewright.codegen.aot import SHARED_LIMITS, compile_all, compile_kernel
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Kernel

COPY = """import triton
import triton.language as tl


@triton.jit
def copy_twice(x_ptr, y_ptr, n, BLOCK: tl.constexpr, WAIT: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WAIT:
        tl.extra.cuda.gdc_wait()
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) * 2, mask=i < n)
"""
PRODUCT = """import triton
import triton.language as tl


@triton.jit
def product(a_ptr, b_ptr, c_ptr, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        a = tl.load(a_ptr + m[:, None] * 4096 + (start + k)[None, :])
        b = tl.load(b_ptr + n[None, :] * 4096 + (start + k)[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + m[:, None] * BN + n[None, :], acc.to(tl.bfloat16))
"""


def copy_kernel(name: str = "copy_1", block: int = 512, *, dependent: bool = False) -> Kernel:
    constants: dict[str, int | float | bool] = {"BLOCK": block, "WAIT": dependent}
    parameters = (("x_ptr", "*bf16"), ("y_ptr", "*bf16"), ("n", "i32"))
    return Kernel(name, "triton", f"kernels/{name}.py", "copy_twice", parameters, constants, dependent_launch=dependent)


def product_kernel(block: int, stages: int) -> Kernel:
    parameters = (("a_ptr", "*bf16"), ("b_ptr", "*bf16"), ("c_ptr", "*bf16"), ("K", "i32"))
    return Kernel("product_1", "triton", "kernels/product_1.py", "product", parameters, {"BM": 64, "BN": block, "BK": 64}, 4, stages)


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_every_architecture_gets_a_cubin_and_its_resources(arch: str) -> None:
    compiled = compile_kernel(copy_kernel(), COPY, arch)
    assert compiled.cubin[:4] == b"\x7fELF" and f".target {arch}" in compiled.ptx
    binary = compiled.binary
    assert (binary.file, binary.symbol, binary.num_warps) == (f"kernels/copy_1.{arch}.cubin", "copy_twice", 4)
    assert 8 <= binary.num_registers <= 64 and (binary.stack_bytes, binary.shared_bytes, binary.global_scratch_bytes) == (0, 0, 0)


def test_pointers_are_taken_as_aligned_so_that_loads_are_wide() -> None:
    ptx = compile_kernel(copy_kernel(block=1024), COPY, "sm_90").ptx
    unmasked = compile_kernel(copy_kernel(block=1024), COPY.replace(", mask=i < n", ""), "sm_90").ptx
    assert "ld.global.v4" in unmasked or "ld.global.v2" in unmasked
    assert ".v4.b32" not in ptx, "nothing is known of n, so a masked load must not be widened"


def test_a_product_overlaps_its_loads_with_the_tensor_core() -> None:
    compiled = compile_kernel(product_kernel(64, 3), PRODUCT, "sm_80")
    assert "cp.async" in compiled.ptx and "mma.sync" in compiled.ptx
    assert compiled.binary.shared_bytes == 2 * 2 * (64 * 64) * 2  # two stages in flight of two bf16 tiles


def test_the_same_source_gives_the_same_bytes() -> None:
    first, second = (compile_kernel(copy_kernel(name), COPY, "sm_90") for name in ("copy_1", "elsewhere_2"))
    assert first.cubin == second.cubin and first.ptx == second.ptx


def test_dependent_launch_waits_only_where_the_hardware_can() -> None:
    assert "griddepcontrol.wait" in compile_kernel(copy_kernel(dependent=True), COPY, "sm_90").ptx
    with pytest.raises(CodegenError, match="kernel copy_1 for sm_80"):
        compile_kernel(copy_kernel(dependent=True), COPY, "sm_80")


def test_too_much_shared_memory_names_kernel_modules_and_limit() -> None:
    with pytest.raises(CodegenError) as caught:
        compile_kernel(product_kernel(256, 5), PRODUCT, "sm_89", ("model.layers.0.mlp.up_proj",))
    assert "kernel product_1 of model.layers.0.mlp.up_proj for sm_89: needs" in str(caught.value)
    assert "sm_89 has 101376 for a block" in str(caught.value) and "fewer stages than 5" in str(caught.value)


def test_what_triton_refuses_is_quoted() -> None:
    with pytest.raises(CodegenError, match=r"kernel copy_1 for sm_90: Triton 3\.\d+\.\d+ refuses it: .*(?s:.)*@ 2"):
        compile_kernel(copy_kernel(), COPY.replace("* 2", "@ 2"), "sm_90")


def test_parameters_that_differ_from_the_signature_are_both_quoted() -> None:
    kernel = dataclasses.replace(copy_kernel(), parameters=(("x_ptr", "*bf16"), ("n", "i32")))
    with pytest.raises(CodegenError, match="copy_twice takes x_ptr, y_ptr, n besides its constants; the manifest lists x_ptr, n"):
        compile_kernel(kernel, COPY, "sm_90")


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CodegenError, match=r"target sm_75: .* known: sm_80, sm_86"):
        compile_kernel(copy_kernel(), COPY, "sm_75")


def test_workers_compile_what_the_cache_lacks_and_nothing_else(tmp_path: Path) -> None:
    kernels = [copy_kernel(f"copy_{block}", block) for block in (128, 256, 512)]
    sources = {kernel.name: COPY for kernel in kernels}
    seen: list[tuple[int, int, str]] = []
    compiled = compile_all(kernels, sources, ["sm_80", "sm_90"], 2, lambda *event: seen.append(event), cache=tmp_path)
    assert [event[:2] for event in seen] == [(i, 6) for i in range(1, 7)]
    assert compiled["copy_256", "sm_90"] == compile_kernel(kernels[1], COPY, "sm_90")
    seen.clear()
    renamed = dataclasses.replace(kernels[0], name="other_name")
    sources["other_name"] = f"# of another layer\n{COPY}"
    again = compile_all([renamed, kernels[1]], sources, ["sm_80"], 2, lambda *event: seen.append(event), cache=tmp_path)
    assert seen == [] and again["other_name", "sm_80"].binary.file == "kernels/other_name.sm_80.cubin"
    assert again["other_name", "sm_80"].cubin == compiled["copy_128", "sm_80"].cubin


def test_a_worker_reports_each_kernel_that_fails(tmp_path: Path) -> None:
    kernels = [copy_kernel(name) for name in ("good_1", "bad_1", "bad_2")]
    sources = {"good_1": COPY, "bad_1": COPY.replace("* 2", "@ 2"), "bad_2": COPY.replace("* 2", "% ''")}
    with pytest.raises(CodegenError, match=r"kernel bad_1 of model\.norm for sm_90") as caught:
        compile_all(kernels, sources, ["sm_90"], 2, cache=tmp_path, modules={"bad_1": ("model.norm",)})
    assert "also: kernel bad_2 for sm_90" in caught.value.__notes__[0]
    assert compile_all(kernels[:1], sources, ["sm_90"], cache=tmp_path)


def test_a_compiler_that_dies_is_an_error_not_a_hang(tmp_path: Path) -> None:
    kernels = [copy_kernel(name) for name in ("good_1", "dies_1", "good_2")]
    dying = "import os\nos._exit(3)\n" + COPY
    sources = {"good_1": COPY, "dies_1": dying, "good_2": COPY.replace("* 2", "* 3")}
    with pytest.raises(CodegenError, match=r"kernel dies_1 for sm_90: the compiler died \(exit code 3\)"):
        compile_all(kernels, sources, ["sm_90"], 2, cache=tmp_path)
    assert len([name for name in os.listdir(tmp_path) if not name.startswith(".")]) == 2
