"""What a person wants to know first, as facts and as sentences: what the model was, what is left of it, and what to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.inspect.blame_places import homeless_ops
from tilewright.inspect.report.kernel_rows import KernelRow
from tilewright.inspect.report.module_rows import ModuleRow
from tilewright.inspect.report.pass_rows import PassRow
from tilewright.inspect.run import Run

MANY = 1000.0


@dataclass(frozen=True, slots=True)
class Warning:
    text: str
    link: str = ""  # fragment of the page


def name_of(run: Run) -> str:
    """The model's name: a hub id as it is, of a path the last part alone."""
    name = run.engine.manifest.model.name if run.engine else run.graph(0).name
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2] if is_path else name


def collect_facts(run: Run) -> dict[str, str]:
    facts = {"Model": name_of(run)}
    if run.engine is not None:
        m = run.engine.manifest
        at_most = m.limits
        limits = f"{at_most.max_batch_size} sequences, {at_most.max_input_len} tokens in, {at_most.max_output_len} out, {at_most.max_tokens} a step"
        facts |= {
            "Architecture": m.model.architecture, "Parameters": f"{m.model.num_parameters:,}", "Activations": m.model.dtype,
            "Quantization": m.model.quantization, "Target": m.target, "Limits": limits,
            "KV cache": f"{m.cache.dtype}, {len(m.cache.layers)} layers, pages of {m.limits.page_size} tokens",
            "Programs": "; ".join(f"{p.name} (to {p.max_tokens} tokens, {len(p.launches)} launches)" for p in m.programs),
        }  # fmt: skip
    if run.manifest is not None:
        facts.setdefault("Target", run.manifest.target)
        facts["Versions"] = ", ".join([run.manifest.producer, *(f"{name} {version}" for name, version in run.manifest.versions.items())])
        facts["Pipeline"] = run.manifest.pipeline.replace("\n", " ")
    return facts


def collect_sentences(run: Run, passes: Sequence[PassRow], kernels: Sequence[KernelRow], modules: Sequence[ModuleRow]) -> tuple[str, ...]:
    before, after = len(run.graph(0)), len(run.final)
    changed = sum(p.status == "changed" for p in passes)
    events, misses = sum(p.num_events for p in passes), sum(p.num_misses for p in passes)
    said = [
        f"{before:,} ops were imported; {len(passes)} passes ran, {changed} of them changed the graph, and {after:,} ops are left"
        f" ({_compute_ops(run):,} of them run in each step, the others once, when weights are packed).",
        f"{events:,} rewrites fired and {misses:,} nearly did.",
    ]
    biggest = max(passes, key=lambda p: p.ops_before - p.ops_after, default=None)
    if biggest is not None and biggest.ops_before > biggest.ops_after:
        said.append(f"{biggest.number:02d} {biggest.name} took most: {biggest.ops_before - biggest.ops_after:,} ops.")
    if kernels and run.engine is not None:
        programs = run.engine.manifest.programs
        sampling = run.engine.manifest.sampling
        served = f"{len(run.engine.manifest.kernels)} kernels serve {len(programs)} programs"
        said.append(f"{served}; a step of `{programs[0].name}` launches {len(programs[0].launches)}.")
        total = sum((k.bytes_read or 0) * k.launches.get(programs[0].name, 0) for k in kernels)
        said.append(f"For one token they read {human_bytes(total)}, beside the pages of its context." if total else "")
        said.append(f"Another {len(sampling.kernels)} kernels sample." if sampling else "")
    lost, homeless = _lost(modules), len(homeless_ops(run))
    if run.engine is not None:
        covered = "Every module with weights is in a kernel or was folded by a named pass"
        covered += ", and every op left names its module." if not homeless else f"; {homeless} ops name no module."
        said.append(f"No kernel and no pass names {', '.join(lost)}." if lost else covered)
    return tuple(filter(None, said))


def collect_warnings(passes: Sequence[PassRow], kernels: Sequence[KernelRow]) -> tuple[Warning, ...]:
    found = [
        Warning(f"kernel {k.name} spills {k.stack_bytes} bytes of each thread to local memory", f"kernels?kernel={k.name}")
        for k in kernels if k.stack_bytes
    ]  # fmt: skip
    for p in passes:
        link = f"passes?pass={p.number}"
        found += [Warning(f"pass {p.number:02d} {p.name} failed; the graph before it is the last one", link)] if p.status == "failed" else []
        found += [Warning(f"pass {p.number:02d} {p.name}: {text}", link) for text in p.warnings]
        found += [
            Warning(f"{p.number:02d} {p.name} did not fire {event.tag} at {event.place}: {event.what}", link)
            for event in p.events if event.kind == "missed" and p.name.startswith("fuse-")
        ]  # fmt: skip
    return tuple(found)


def human_bytes(amount: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < MANY or unit == "GB":
            return f"{amount:.3g} {unit}" if unit != "bytes" else f"{amount:.0f} bytes"
        amount /= MANY
    raise AssertionError


def _compute_ops(run: Run) -> int:
    return sum(not all(v.is_const for v in op.results) for op in run.final.ops)


def _lost(modules: Sequence[ModuleRow]) -> list[str]:
    parents = {m.path.rpartition(".")[0] for m in modules}
    return [m.path for m in modules if m.weight_bytes and m.path not in parents and not m.kernels and not m.folded_by]
