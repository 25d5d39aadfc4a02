"""Where the buffers of a program lie; and its launches made to serve another size, beside grids and integers computed launch by launch."""

import random
from types import SimpleNamespace

import torch

from tilewright.ir.manifest import Arg, Buffer, Extent, Launch, Limits, Program, size_grid
from tilewright.runtime.program_binder import BoundProgram, ProgramBinder, Sizing
from tilewright.runtime.step import StepDims

EXTENTS = [Extent(), Extent(7), Extent(2, "T", 16), Extent(1, "B"), Extent(3, "T", 64, "B"), Extent(1, "S", 4)]
ARGS = [Arg("buffer", "x"), Arg("weight", "w"), Arg("dim", "T"), Arg("dim", "S"), Arg("dim", "B"), Arg("step", "ids")]


class Recorder:
    """A launch that knows what it was last made to be; `refuses` as those do whose tensors know their size."""

    def __init__(self, refuses=False):
        self.refuses, self.seen, self.run = refuses, None, lambda stream: None

    def resize(self, grid, sizes):
        self.seen = grid, dict(sizes)
        return not self.refuses


def bind(launches, recorders):
    program = Program("ragged_64", "ragged", 64, 0, (), tuple(launches), "logits")
    return BoundProgram(program, recorders, torch.zeros(0), {}, Sizing.of(program))


def draw_launches(dice, count):
    return [
        Launch("k", tuple(dice.choices(ARGS, k=dice.randint(0, 6))), tuple(dice.choices(EXTENTS, k=3)), f"r{i}")  # type: ignore[arg-type]
        for i in range(count)
    ]


def test_each_launch_gets_its_own_grid_and_integers():
    dice = random.Random(3)
    for _ in range(20):
        launches = draw_launches(dice, 30)
        bound = bind(launches, [Recorder() for _ in launches])
        for _ in range(3):
            dims = StepDims(dice.randint(1, 8192), dice.randint(1, 256), dice.randint(1, 256))
            assert bound.resize(dims)
            sizes = dims.as_dict()
            for launch, recorder in zip(launches, bound.launches):
                assert recorder.seen == (size_grid(launch.grid, sizes), {i: sizes[a.name] for i, a in enumerate(launch.args) if a.kind == "dim"})


def test_one_launch_that_cannot_be_resized_has_the_program_bound_anew():
    launches = draw_launches(random.Random(4), 5)
    assert not bind(launches, [Recorder(refuses=i == 3) for i in range(5)]).resize(StepDims(5, 2, 2))


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
