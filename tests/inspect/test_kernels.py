"""One kernel from source to machine code: every instruction has a line, resources are those that the tools tell, lints find what is slow."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from serving import engine_of

from tilewright.cli import app
from tilewright.codegen.line_info import compile_with_lines
from tilewright.inspect.kernels import Instruction, KernelView, lint, print_sass, read_sass, take_lines
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Kernel

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def engine():
    return engine_of("llama3", "sm_90", torch.bfloat16, "int8")


def test_every_instruction_has_a_line_of_the_source(engine):
    for kernel in engine.manifest.all_kernels:
        view = KernelView(engine, kernel)
        work = [i for i in view.instructions if not i.text.startswith("NOP")]
        assert sum(i.line > 0 for i in work) >= 0.9 * len(work), kernel.name
        assert all(i.line <= len(view.source.splitlines()) for i in work)


def test_resources_are_those_that_cuobjdump_tells(engine):
    for kernel in engine.manifest.all_kernels:
        binary = KernelView(engine, kernel).binary
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(engine.path / binary.file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        told = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", text)}
        assert (told["REG"], told["STACK"]) == (binary.num_registers, binary.stack_bytes)
        assert told["SHARED"] <= 1024  # what the driver keeps; a kernel's own is asked for at launch, and no tool sees it in the cubin


def test_an_architecture_that_the_engine_does_not_hold_is_refused(engine):
    with pytest.raises(EngineError, match=r"kernel down_proj_\w+: is not compiled for sm_80; the engine holds: sm_90"):
        KernelView.find(engine, next(k.name for k in engine.manifest.kernels if k.name.startswith("down_proj")), "sm_80")


def test_kernels_that_sample_are_found_like_the_others(engine, capsys):
    kernel = next(k for k in engine.manifest.sampling.kernels if k.entry == "sample_collect")
    view = KernelView.find(engine, "sample_collect")
    assert view.kernel == kernel and view.modules == ["sampling"] and list(view.launches) == ["sampling-filter"]
    assert view.docstring.startswith("Of one part of a row: how many tokens are over the bracket and their mass")
    for words, said in (
        (["show", engine.path, "kernels"], rf"{kernel.name} +sampling-filter x1 +sm_90: \d+ registers"),
        (["kernel", engine.path, kernel.name], r"modules +sampling\n +does +Of one part of a row"),
        (["kernel", engine.path, kernel.name, "--ptx"], r"\.entry sample_collect"),
        (["blame", engine.path, "sample_collect"], r"launches +sampling-filter x1: sample_collect\n +modules +sampling"),
    ):
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        assert not ended.value.code and re.search(said, capsys.readouterr().out), words


BYTES = """import triton
import triton.language as tl


@triton.jit
def product(x, w, out, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)[None, :]
    n = tl.arange(0, 4)[:, None]
    weight = tl.load(w + n * BLOCK + k).to(tl.float32)
    acc = weight * tl.load(x + k).to(tl.float32)
    tl.store(out + tl.arange(0, 4), tl.sum(acc, 1))
"""


def lints_of(source, **parameters):
    kernel = Kernel("product_1", "triton", "product_1.py", "product", tuple(parameters.items()), {"BLOCK": 2048}, 4, 1)
    return lint(source, read_sass(compile_with_lines(kernel, source, "sm_90"), Path("<triton product_1>")))


def test_a_tile_that_moves_between_threads_is_found_at_its_line():
    found = lints_of(BYTES, x="*bf16", w="*i8", out="*f32")
    assert any("shared memory" in item.problem and item.line in (9, 10) for item in found)
    assert not lints_of(BYTES, x="*bf16", w="*bf16", out="*f32")


def test_loads_of_single_elements_are_found():
    found = lints_of(BYTES.replace("x + k)", "x + k * 3)"), x="*bf16", w="*bf16", out="*f32")
    assert any("loads of 4 bytes or less" in item.problem and item.line == 10 for item in found)


def test_code_stands_under_the_lines_that_it_was_made_for(engine):
    view = next(KernelView(engine, k) for k in engine.manifest.kernels if k.name.startswith("qkv"))
    text = print_sass(view)
    for number, line in enumerate(view.source.splitlines(), 1):
        if "tl.store" in line:
            assert re.search(rf"^ *{number}  {re.escape(line.strip())}\n +\S*.*", text, re.MULTILINE)
    assert "STG" in text and f".target {view.arch}" in view.ptx


def test_a_kernel_is_found_by_the_beginning_of_its_name(engine):
    name = engine.manifest.kernels[0].name
    assert KernelView.find(engine, name[:-2]).kernel.name == name
    with pytest.raises(EngineError, match="begins the names of"):
        KernelView.find(engine, "qkv")
    with pytest.raises(EngineError, match="no kernel 'qvk'"):
        KernelView.find(engine, "qvk")
    with pytest.raises(EngineError, match=r"is not compiled for sm_80; the engine holds: sm_90"):
        KernelView.find(engine, name, "sm_80").lints()


def test_the_command_line_shows_summary_source_and_machine_code(engine, capsys):
    name = engine.manifest.kernels[0].name
    for flags, expected in (([], "registers"), (["--src"], "@triton.jit"), (["--ptx"], ".visible .entry"), (["--sass"], "EXIT")):
        with pytest.raises(SystemExit) as ended:
            app(["kernel", str(engine.path), name, *flags])
        assert not ended.value.code and expected in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        app(["kernel", str(engine.path), name, "--src", "--ptx"])
    assert ended.value.code == 2 and "more than one" in capsys.readouterr().err


def test_lines_are_taken_from_the_same_code_in_other_registers():
    held = [Instruction(text, 0) for text in ("MOV R1, R2", "FADD R3, R1, R1", "IADD3 R9, R9, R9", "EXIT")]
    with_lines = [Instruction(text, line) for text, line in (("MOV R7, R2", 4), ("FADD R5, R7.reuse, R7", 5), ("EXIT", 9))]
    assert take_lines(held, with_lines) == [Instruction(i.text, line) for i, line in zip(held, (4, 5, 5, 9))]
