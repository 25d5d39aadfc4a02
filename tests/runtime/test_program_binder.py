"""Where the buffers of a program lie."""

from types import SimpleNamespace

import torch

from tilewright.ir.manifest import Buffer, Limits, Program
from tilewright.runtime.program_binder import ProgramBinder
from tilewright.runtime.step import StepDims

LIMITS = Limits(max_batch_size=4, max_input_len=48, max_output_len=16, max_tokens=64, page_size=16)


def program(name: str, max_tokens: int, *buffers: Buffer) -> Program:
    return Program(name, "ragged", max_tokens, 1024, buffers, (), "logits")


def test_zeroed_buffers_share_no_byte_with_the_arena_of_any_program() -> None:
    small = program("small", 4, Buffer("count", "i32", (5,), 0, zeroed=True), Buffer("x", "f32", ("T", 4), 0))
    large = program("large", 64, Buffer("flags", "i32", ("B", 3), 256, zeroed=True), Buffer("y", "f32", ("T", 4), 0))
    engine = SimpleNamespace(backend=SimpleNamespace(device=torch.device("cpu")), manifest=SimpleNamespace(programs=(small, large), limits=LIMITS))
    binder = ProgramBinder(engine, [])  # type: ignore[arg-type]
    views = binder.view_buffers(small, StepDims(4, 4, 4)) | binder.view_buffers(large, StepDims(64, 4, 4))
    for name in ("x", "y"):
        views[name].fill_(1.0)
    assert not views["count"].any() and not views["flags"].any() and views["flags"].shape == (4, 3)
