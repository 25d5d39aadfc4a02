"""Launches of a program made to serve another size, beside grids and integers computed launch by launch."""

import random

import torch

from tilewright.ir.manifest import Arg, Extent, Launch, Program
from tilewright.runtime.program_binder import BoundProgram, Sizing, grid_of
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
                assert recorder.seen == (grid_of(launch, sizes), {i: sizes[a.name] for i, a in enumerate(launch.args) if a.kind == "dim"})


def test_one_launch_that_cannot_be_resized_has_the_program_bound_anew():
    launches = draw_launches(random.Random(4), 5)
    assert not bind(launches, [Recorder(refuses=i == 3) for i in range(5)]).resize(StepDims(5, 2, 2))
