"""Measured tiles for a build: which are known for its target, where they are kept, and how more are measured. Decides nothing about tiles."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.codegen.choices import Choice, ChoiceFile, Choices, Device, default_folder, keep, read_given, read_own, read_shipped
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tuning import Budget, Measured, Timer, tune
from tilewright.environment import read_environment
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Limits
from tilewright.stages import Stages

NOTHING = "none"  # in place of a file: defaults alone


@dataclass
class Tiles:
    """What a build knows of tiles. `timer`: None where nothing is to be measured."""

    device: Device | None = None  # None: the target has no tiles
    choices: Choices = field(default_factory=Choices)
    timer: Timer | None = None
    budget: Budget = field(default_factory=Budget)
    measured: dict[str, Measured] = field(default_factory=dict)  # by key of plan, in this build

    def measure(self, plans: Sequence[KernelPlan], limits: Limits, stages: Stages) -> None:
        """Adds choices for plans that have none, each kept on disk as soon as it is made. An interrupt loses only the plan under way."""
        if self.timer is None or self.device is None:
            return
        device = self.device
        file = default_folder() / device.file_name
        with stages.stage("tune") as stage:
            kept: list[Choice] = []

            def keep_choice(choice: Choice) -> None:
                keep(file, device, [choice])
                kept.append(choice)

            try:
                tuning = tune(plans, self.timer, limits, self.choices, budget=self.budget, keep=keep_choice, progress=stage.advance)
            except BaseException:
                stages.tell(f"tune: stopped after {len(kept)} kernels, whose tiles are kept in {file}" if kept else "tune: stopped, nothing measured")
                raise
            stage.note(f"{tuning}; kept in {file}" if tuning.measured else str(tuning))
        self.measured = tuning.measured
        self.choices = Choices([ChoiceFile(device, {key: m.choice for key, m in tuning.measured.items()}), *self.choices.files])


def open_tiles(target: str, tune: bool | Timer = False, tuned: str | Path | None = None, budget: Budget | None = None) -> Tiles:
    """What is known for a target, and by what to measure. Raises TilewrightError at once for a target that cannot be measured here, and for files
    that cannot be read.

    tune: True for this machine's GPU, or a Timer. tuned: a file of choices, asked before the user's own and those shipped; `none`: no choices.
    """
    timer = _choose_timer(target, tune) if tune is not False else None
    if target == "cpu":
        if tuned not in (None, NOTHING):
            raise EngineError("tuned", f"is {str(tuned)!r}, and the target is cpu, whose kernels have no tiles", "build for a GPU, such as sm_90")
        return Tiles()
    device = timer.device if timer else find_device(target)
    if tuned == NOTHING:
        return Tiles(device, Choices(), timer, budget or Budget())
    files = [] if tuned is None else [read_given(Path(tuned), device)]
    own = [read_own(default_folder() / device.file_name, device)] if device.gpu else []
    return Tiles(device, Choices([*files, *own, *read_shipped(device)]), timer, budget or Budget())


def _choose_timer(target: str, tune: bool | Timer) -> Timer:
    if target == "cpu":
        raise EngineError("tune", "the target is cpu, whose kernels are torch code without tiles", "leave tune out, or build for cuda")
    if isinstance(tune, bool):
        if read_environment().interpret:
            raise EngineError("tune", "kernels would run in the interpreter, whose times say nothing of a GPU", "unset TILEWRIGHT_INTERPRET")
        from tilewright.gpu_timer import GpuTimer

        tune = GpuTimer()
    if tune.device.arch != target:
        problem = f"the target is {target}, and the GPU here, {tune.device.gpu}, is {tune.device.arch}"
        raise EngineError("tune", problem, f"tune where there is a {target}, and pass the file that it writes as tuned=")
    return tune


def find_device(target: str) -> Device:
    """The target with this machine's GPU, where it is of that architecture."""
    import torch

    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
    if torch.cuda.is_available() and "sm_{}{}".format(*torch.cuda.get_device_capability()) == target:
        return Device(target, torch.cuda.get_device_name(), triton)
    return Device(target, "", triton)
