"""A faulty launch as a file that runs alone, on its engine and checkpoint. Exits 1 while the fault is there."""

from __future__ import annotations

from pathlib import Path

from tilewright.inspect.check import Bench
from tilewright.inspect.launches import LaunchRow
from tilewright.inspect.repro import fails

SCRIPT = '''\
"""{title}

Exits 1 while the fault is there, 0 once it is gone:  python {name}
"""

import sys

from tilewright.inspect import load
from tilewright.inspect.check import Bench, load_weights
from tilewright.inspect.launches import LaunchProbe
from tilewright.inspect.references import Sample

ENGINE, MODEL = {engine!r}, {model!r}
PROGRAM, REGION, STEP = {program!r}, {region!r}, {step!r}
PROMPTS = {prompts!r}


def main():
    run = load(ENGINE)
    bench = Bench.of(run, load_weights(run, MODEL), Sample(PROMPTS), device={device!r})
    row = LaunchProbe(bench.steps, run.final, bench.study.references).check_named(PROGRAM, REGION, STEP)
    print(f"{{row.value}} by {{' '.join(row.kernels)}} is {{row.isolated:.2e}} (relative) off; {{row.floor:.2e}} is rounding")
    return int(row.severity > 1)


if __name__ == "__main__":
    sys.exit(main())
'''


def write_kernel_repro(file: Path, title: str, bench: Bench, row: LaunchRow, model: str | None) -> Path | None:
    """The file, once it has been run and has failed; None, and no file, otherwise."""
    assert bench.run.engine is not None and bench.steps is not None, "launches belong to an engine"
    engine = bench.run.engine
    device = None if engine.manifest.target == "cpu" else str(bench.steps.device)
    text = SCRIPT.format(
        title=title, name=file.name, engine=str(engine.path.resolve()), model=model or engine.manifest.model.name, program=row.program,
        region=row.region, step=row.step, prompts=bench.study.references.sample.prompts, device=device,
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if fails(file):
        return file
    file.unlink()
    return None
