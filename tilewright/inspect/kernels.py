"""One kernel of an engine, from its source to its machine code: who launches it, what it takes of the machine, and what looks slow in it.

Reads the cubin with Triton's bundled tools, so that no GPU is needed. Knows nothing of passes.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tilewright.engine import Engine
from tilewright.ir.errors import CodegenError, EngineError
from tilewright.ir.manifest import SAMPLING, Binary, Kernel, Launch
from tilewright.ir.opdef import suggest

TRIALS_FILE = "tune.jsonl"  # in inspect/kernels/<name>, one line for each tile that was tried
_LOCATION = re.compile(r'//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);")
_REGISTER = re.compile(r"\bU?[RP]\d+\b(\.reuse)?")
_GLOBAL_LOAD = re.compile(r"\bLDG\.\S+")
_WRITES_SHARED = re.compile(r"\bSTS\b")
_TOUCHES_LOCAL = re.compile(r"\b(STL|LDL)\b")
_REDUCES = re.compile(r"tl\.(sum|max|min|reduce)\b")


@dataclass(frozen=True, slots=True)
class Instruction:
    text: str  # as nvdisasm prints it, without address
    line: int  # of the kernel's source; 0: none, as for padding


@dataclass(frozen=True, slots=True)
class Lint:
    """Something in the machine code that often costs time."""

    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A line of `tune.jsonl`."""

    tile: dict[str, int]  # all of it
    move: dict[str, int]  # what it changes of the default
    us: float | None  # None: not timed, and `note` says why
    error: float | None  # of its results against the default's
    note: str
    chosen: bool

    def __str__(self) -> str:
        tile = " ".join(f"{name}={value}" for name, value in self.move.items()) or "the default"
        found = f"{self.us:9.2f} us" if self.us is not None else f"{'-':>9}   "
        return f"{found} {'*' if self.chosen else ' '} {tile}{f'   {self.note}' if self.note else ''}"


class KernelView:
    """A kernel of an engine, compiled for `arch` (its target by default)."""

    def __init__(self, engine: Engine, kernel: Kernel, arch: str | None = None) -> None:
        self.engine, self.kernel = engine, kernel
        self.arch = arch or engine.manifest.target

    @staticmethod
    def find(engine: Engine, name: str, arch: str | None = None) -> KernelView:
        """By name, or by a beginning of it that only one kernel has. Raises EngineError."""
        kernels = {kernel.name: kernel for kernel in engine.manifest.all_kernels}
        fitting = [name] if name in kernels else [known for known in kernels if known.startswith(name)]
        if len(fitting) == 1:
            return KernelView(engine, kernels[fitting[0]], arch)._check_arch()
        problem = f"no kernel {name!r}" if not fitting else f"{name!r} begins the names of {len(fitting)} kernels"
        raise EngineError(f"engine {engine.path}", problem, ", ".join(fitting) or suggest(name, kernels))

    @cached_property
    def source(self) -> str:
        return (self.engine.path / self.kernel.file).read_text(encoding="utf-8")

    @cached_property
    def trials(self) -> list[Trial]:
        """Tiles that the build tried for it, in order; none where it measured nothing."""
        file = self.engine.path / "inspect" / "kernels" / self.kernel.name / TRIALS_FILE
        return [Trial(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    @property
    def launches(self) -> dict[str, list[Launch]]:
        """By program, those that sample among them."""
        lists = self.engine.manifest.launch_lists
        found = {name: [launch for launch in launches if launch.kernel == self.kernel.name] for name, launches in lists.items()}
        return {name: launches for name, launches in found.items() if launches}

    @property
    def samples(self) -> bool:
        """Whether it chooses tokens, rather than computing a part of the model."""
        sampling = self.engine.manifest.sampling
        return sampling is not None and self.kernel in sampling.kernels

    @property
    def modules(self) -> list[str]:
        """HF module paths of all launches, in order; `sampling` alone for a kernel that samples."""
        if self.samples:
            return [SAMPLING]
        return list(dict.fromkeys(m for launches in self.launches.values() for launch in launches for m in launch.modules))

    @property
    def binary(self) -> Binary:
        """Raises EngineError where the engine holds none for the architecture."""
        if self.arch not in self.kernel.binaries:
            held = ", ".join(self.kernel.binaries) or "none, its kernels are torch code"
            raise EngineError(f"kernel {self.kernel.name}", f"is not compiled for {self.arch}", f"the engine holds: {held}")
        return self.kernel.binaries[self.arch]

    @property
    def docstring(self) -> str:
        """First paragraph of what its entry says of itself; generated kernels of a model say it in their header."""
        functions = [node for node in ast.parse(self.source).body if isinstance(node, ast.FunctionDef) and node.name == self.kernel.entry]
        return " ".join(((ast.get_docstring(functions[0]) if functions else "") or "").partition("\n\n")[0].split())

    @cached_property
    def ptx(self) -> str:
        """Compiled again from the source, which gives the same instructions."""
        from tilewright.codegen.aot_kernel import compile_kernel

        return compile_kernel(*self._to_compile()).ptx

    @cached_property
    def instructions(self) -> list[Instruction]:
        """The machine code. Lines come from a second compilation with line info, for which ptxas may choose other registers and another order.

        Raises EngineError where a compilation without it gives other instructions, too: then another Triton compiled the engine.
        """
        held = read_sass((self.engine.path / self.binary.file).read_bytes())
        from tilewright.codegen.aot_kernel import compile_kernel
        from tilewright.codegen.line_info import compile_with_lines

        with_lines = read_sass(compile_with_lines(*self._to_compile()), Path(f"<triton {self.kernel.name}>"))
        if [i.text for i in held] == [i.text for i in with_lines]:
            return with_lines
        if [i.text for i in held] != [i.text for i in read_sass(compile_kernel(*self._to_compile()).cubin)]:
            raise EngineError(f"kernel {self.kernel.name}", "this Triton compiles it to other instructions than the engine holds", "build it again")
        return take_lines(held, with_lines)

    @property
    def sass(self) -> str:
        """Machine code under the lines of source that it was made for."""
        return print_sass(self)

    def lints(self) -> list[Lint]:
        spilled = self.binary.stack_bytes
        found = [Lint(0, f"keeps {spilled} bytes of each thread in local memory")] if spilled else []
        return found + lint(self.source, self.instructions)

    def _check_arch(self) -> KernelView:
        """Raises EngineError where another architecture is asked for than the engine holds."""
        if self.arch != self.engine.manifest.target:
            _ = self.binary
        return self

    def _to_compile(self) -> tuple[Kernel, str, str, tuple[str, ...]]:
        if self.kernel.language != "triton":
            raise EngineError(f"kernel {self.kernel.name}", "is torch code: there is nothing compiled", "build for a GPU target, such as sm_90")
        return self.kernel, self.source, self.arch, tuple(self.modules)

    def __str__(self) -> str:
        return self.source


def read_sass(cubin: bytes, source: Path | None = None) -> list[Instruction]:
    """nvdisasm's instructions; with `source`, each with the line of that file that it was made for, through what was inlined."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", *(["-gi"] if source else []), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CodegenError("nvdisasm", f"cannot read the cubin: {done.stderr.strip():.200}")
    found: list[Instruction] = []
    line = 0
    for text in done.stdout.splitlines():
        if location := _LOCATION.search(text):
            line = int(location[2]) if source and location[1] == str(source) else line
        elif instruction := _INSTRUCTION.search(text):
            found.append(Instruction(instruction[1].strip(), 0 if instruction[1].startswith("NOP") else line))
    return found


def take_lines(held: list[Instruction], with_lines: list[Instruction]) -> list[Instruction]:
    """`held` with the lines of the same code in another order and in other registers; what has no counterpart has the line of what it follows."""
    sides = [[_REGISTER.sub("", i.text) for i in side] for side in (held, with_lines)]
    lines: dict[int, int] = {}
    for match in difflib.SequenceMatcher(None, *sides, autojunk=False).get_matching_blocks():
        lines.update({match.a + i: with_lines[match.b + i].line for i in range(match.size)})
    found: list[Instruction] = []
    line = 0
    for place, instruction in enumerate(held):
        line = lines.get(place, line)
        found.append(Instruction(instruction.text, line))
    return found


def lint(source: str, instructions: list[Instruction]) -> list[Lint]:
    """By line of source. What feeds tensor cores goes through shared memory by design, so that is said of other kernels only."""
    code: dict[int, list[str]] = {}
    for instruction in instructions:
        code.setdefault(instruction.line, []).append(instruction.text)
    lines = source.splitlines()
    has_dot = "tl.dot(" in source
    return [Lint(n, problem) for n in sorted(code) if n for problem in _lint_line(lines[n - 1], code[n], has_dot=has_dot)]


def _lint_line(source: str, code: list[str], *, has_dot: bool) -> list[str]:
    loads = [match[0] for text in code if (match := _GLOBAL_LOAD.search(text))]
    narrow = [load for load in loads if not load.endswith((".64", ".128"))]
    found = []
    if len(narrow) > 1:
        found.append(f"{len(narrow)} loads of 4 bytes or less ({narrow[0]}): addresses that are not known to be neighbours")
    if not has_dot and any(_WRITES_SHARED.search(text) for text in code) and not _REDUCES.search(source):
        found.append("moves a tile through shared memory: its operands lie in other threads than its result")
    if any(_TOUCHES_LOCAL.search(text) for text in code):
        found.append("keeps values in local memory")
    return found


# -- text -----------------------------------------------------------------------------------------------------------------------
def print_kernel(view: KernelView) -> str:
    """What a person wants to know first."""
    kernel = view.kernel
    uses = ", ".join(f"{name} x{len(launches)}" for name, launches in view.launches.items())
    lines = [f"kernel {kernel.name}: {kernel.language}, launched in {uses or 'no program'}"]
    lines += [f"  modules   {', '.join(view.modules)}"]
    lines += [f"  does      {view.docstring}"] if view.samples else []
    lines += [f"  cut       {reason}" for reason in dict.fromkeys(launch.reason for all_ in view.launches.values() for launch in all_) if reason]
    if kernel.language == "triton":
        b, constants = view.binary, ", ".join(f"{name}={value}" for name, value in kernel.constants.items())
        lines.append(f"  tile      {constants}; {kernel.num_warps} warps, {kernel.num_stages} stages")
        lines += [f"  tuned     {text}" for text in [describe_tuned(kernel)] if text]
        lines.append(f"  {view.arch}     {b.num_registers} registers, {b.stack_bytes} bytes of stack, {b.shared_bytes} bytes of shared memory")
        lines += _print_lints(view)
    if view.trials:
        lines += ["", f"  {len(view.trials)} tiles measured, the chosen one marked *", *(f"  {trial}" for trial in rank_trials(view.trials))]
    return "\n".join([*lines, "", view.source.rstrip()]) + "\n"


def describe_tuned(kernel: Kernel) -> str:
    """Empty for a default tile."""
    tuned = kernel.tuned
    if tuned is None:
        return ""
    return f"{tuned.us:.2f} us, with the default tile {tuned.default_us:.2f} us: {tuned.gain:.1%} less, on {tuned.gpu}"


def rank_trials(trials: list[Trial]) -> list[Trial]:
    """The fastest first; what was not timed last, as it was tried."""
    return sorted(trials, key=lambda trial: (trial.us is None, trial.us or 0.0))


def _print_lints(view: KernelView) -> list[str]:
    source = view.source.splitlines()
    lints = view.lints()
    if not lints:
        return ["  nothing in its machine code looks slow"]
    return [f"  line {found.line:<4} {found.problem}\n            {source[found.line - 1].strip()}" for found in lints if found.line] + [
        f"  {found.problem}" for found in lints if not found.line
    ]


def print_sass(view: KernelView) -> str:
    """The machine code under the lines of source that it was made for, in the order of the code."""
    source = view.source.splitlines()
    lines: list[str] = []
    last = -1
    for instruction in view.instructions:
        if instruction.line != last:
            last = instruction.line
            lines.append(f"{last:4d}  {source[last - 1].strip()}" if last else "      (no line)")
        lines.append(f"          {instruction.text}")
    return "\n".join(lines) + "\n"
