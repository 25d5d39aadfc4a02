"""Profiles kept with their engine in `inspect/perf`: what was measured, on which machine, when and with which versions.

The folder is no part of what was built, so the engine's hashes know nothing of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from tilewright.inspect.profile import Profile, least_us, profile_decode, profile_prompt
from tilewright.inspect.run import Run
from tilewright.inspection import library_versions, producer
from tilewright.ir.errors import EngineError, TilewrightError
from tilewright.ir.manifest import SAMPLING
from tilewright.ir.plain_json import decode, schema_of
from tilewright.measure import measure_compute_limit, measure_read_limit
from tilewright.runtime import LLM
from tilewright.runtime.dtypes import TORCH_DTYPES

SCHEMA = 1
CONTEXT = 384  # tokens of a sequence, or what the engine takes
PERF = Path("inspect") / "perf"


@dataclass(frozen=True, slots=True)
class RecordedLaunch:
    kernel: str
    region: str
    modules: tuple[str, ...]
    us: float
    num_bytes: int
    operations: int


@dataclass(frozen=True, slots=True)
class RecordedProfile:
    schema: int
    device: str  # name of the GPU, or of the CPU's architecture
    date: str  # of the measurement, UTC
    versions: dict[str, str]
    program: str
    batch: int
    context: int
    step_us: float
    wall_us: float
    read_limit: float | None  # bytes a second, measured in the same run; None where it was not
    compute_limit: float | None  # operations a second
    launches: tuple[RecordedLaunch, ...]
    sampling: str = "greedy"
    tokens: int = 1  # of each sequence in the step

    @property
    def samples(self) -> bool:
        """Whether launches that sample are among them."""
        return any(launch.modules == (SAMPLING,) for launch in self.launches)

    @property
    def sum_us(self) -> float:
        return sum(launch.us for launch in self.launches)

    def least_us(self, launch: RecordedLaunch) -> float | None:
        """What the machine's limits leave a launch at least; None where they are not known."""
        return least_us(launch.num_bytes, launch.operations, self.read_limit, self.compute_limit)


def profile_here(llm: LLM, *, batch: int = 1, context: int = CONTEXT, prompt: int | None = None, sampling: str = "greedy") -> Profile:
    """A decode step, or the step that runs a prompt of so many tokens, beside the limits of the machine that it runs on, which are measured on a
    GPU. Raises EngineError."""
    read = compute = None
    if llm.engine.backend.device.type == "cuda":
        read, compute = measure_read_limit(), measure_compute_limit(TORCH_DTYPES[llm.manifest.model.dtype])
    if prompt is not None:
        return profile_prompt(llm, tokens=prompt, limit=read, compute_limit=compute, sampling=sampling)
    return profile_decode(llm, batch=batch, context=context, limit=read, compute_limit=compute, sampling=sampling)


def save_profile(engine: Path, profile: Profile, device: torch.device) -> Path:
    """One file for each program, batch, context and way of sampling; an older one is replaced. Raises TilewrightError where it cannot be written."""
    launches = tuple(
        RecordedLaunch(t.launch.kernel, t.launch.region, t.launch.modules, t.us, t.num_bytes, t.operations) for t in profile.times
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _name_cpu()
    versions = {"tilewright": producer().partition(" ")[2], **library_versions()}
    date = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")
    recorded = RecordedProfile(
        SCHEMA, name, date, versions, profile.program, profile.batch, profile.context, profile.step_us, profile.wall_us,
        profile.limit, profile.compute_limit, launches, profile.sampling, profile.tokens,
    )  # fmt: skip
    sampling = "" if profile.sampling == "greedy" else f"-{profile.sampling}"
    file = engine / PERF / f"{profile.program}-batch-{profile.batch}-context-{profile.context}{sampling}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(recorded), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TilewrightError(str(file), f"cannot be written ({error.strerror})", "pass --no-save") from error
    return file


def _name_cpu() -> str:
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def read_profiles(run: Run) -> tuple[RecordedProfile, ...]:
    """By program, batch and context. Raises EngineError for one that cannot be read."""
    folder = (run.folder.parent if run.folder.name == "passes" else run.folder) / PERF.name
    found = [read_profile(file) for file in folder.glob("*.json")]
    return tuple(sorted(found, key=lambda p: (p.program, p.batch, p.context, p.sampling)))


def read_profile(file: Path) -> RecordedProfile:
    """Raises EngineError for one that cannot be read, or has another schema."""
    remedy = "profile again, or take the file away"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(str(file), f"cannot be read ({error})", remedy) from error
    schema = schema_of(data)
    if schema != SCHEMA:
        raise EngineError(str(file), f"has profile schema {schema!r}, this version reads schema {SCHEMA}", remedy)
    return decode(RecordedProfile, data, str(file))
