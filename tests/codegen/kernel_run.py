"""Runs the kernels that a template emits for part of a graph on Triton's interpreter, beside the reference interpreter on the whole graph."""

import linecache
import types
from dataclasses import dataclass

import torch
import triton

import tilewright.ir.ops  # noqa: F401
from tilewright.codegen.aot import compile_kernel
from tilewright.codegen.plan import make_plan
from tilewright.codegen.source import emit
from tilewright.ir.interpreter import evaluate_constant, interpret
from tilewright.ir.manifest import Kernel, Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES, QuantizedTensor
from tilewright.ir.regions import Regime, Region
from tilewright.runtime.triton_interpreter import launch, load_kernel

LIMITS = Limits(max_batch_size=4, max_input_len=48, max_output_len=16, max_tokens=64, page_size=16)


class RandomWeights:
    """Normal numbers by name, scaled so that products stay near one."""

    def __init__(self, graph, seed):
        self.graph, self.seed = graph, seed

    def load(self, name):
        type_ = self.graph.params[name].type
        generator = torch.Generator().manual_seed(self.seed * 1000 + len(name) + sum(map(ord, name)))
        scale = 1.0 if type_.rank == 1 or "emb" in name else float(type_.shape[-1]) ** -0.5
        return (torch.randn(type_.shape, generator=generator) * scale).to(TORCH_DTYPES[type_.dtype])


@dataclass
class Case:
    graph: object
    region: Region
    weights: RandomWeights
    inputs: dict
    values: dict  # value -> tensor of the reference


def make_case(text, anchor, template, inputs=None, *, seed=0, batch=None, writes=False):
    """The region of the anchor is all run-time ops but embeddings (they make its inputs); its outputs are the graph's.

    Without inputs nothing is computed: the case can only be emitted. writes: the region has what feeds and writes the pages, too.
    """
    graph = parse_graph(text)
    skipped = ("embedding",) if writes else ("embedding", "write_kv")
    ops = tuple(op for op in graph.ops if not op.is_const and op.name not in skipped)
    made = {v for op in ops for v in op.results}
    reads = tuple(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
    chosen = next(op for op in ops if op.name == anchor)
    region = Region(f"layers.0.{anchor}_part", template, ops, chosen, reads, tuple(v for v in graph.outputs if v in made), "")
    values = {}
    if inputs is not None:
        interpret(graph, inputs, RandomWeights(graph, seed), batch=batch, observe=values.__setitem__)
    return Case(graph, region, RandomWeights(graph, seed), inputs or {}, values)


def emit_case(case, regime: Regime, limits=LIMITS, **config):
    plan, binding = make_plan(case.region, regime, limits, "sm_90", tuple(sorted(config.items())))
    return plan, binding, emit(plan)


def run_case(case, regime: Regime, dims, extra=None, limits=LIMITS, tokens=None, device="cpu", launches=1, **config):
    """Launches every kernel of the emission, `launches` times, and returns output tensors by graph value name. Pages in `extra` are written.

    extra: step tensors and pages by name or kind. tokens: rows of the reference's values that the step has (all of them, by default).
    device cpu: on the interpreter, checked; cuda: compiled by Triton.
    """
    plan, binding, emission = emit_case(case, regime, limits, **config)
    arguments = {p.name: _tensor(case, p, arg, dims, extra or {}, tokens) for p, arg in zip(plan.parameters, binding)}
    for space in emission.workspaces:
        shape = [dims[d] if isinstance(d, str) else d for d in space.shape]
        arguments[space.name] = torch.full(shape, 0 if space.zeroed else float("nan"), dtype=TORCH_DTYPES[space.dtype])
    arguments = {name: tensor.to(device) for name, tensor in arguments.items()}
    for kernel in emission.kernels * launches:
        args = [arguments.get(name, dims.get(name)) for name in kernel.parameters]
        grid = tuple(extent(dims) for extent in kernel.grid)
        (_launch_interpreted if device == "cpu" else _launch_compiled)(kernel, grid, args)
    assert all(not arguments[space.name].any() for space in emission.workspaces if space.zeroed), "zeroed scratch is left zero"
    for p in plan.parameters:
        if p.role in ("k_cache", "v_cache") and p.role in (extra or {}):
            extra[p.role].copy_(arguments[p.name])
    return {arg.name: arguments[p.name].cpu() for p, arg in zip(plan.parameters, binding) if p.role == "out"}


def _launch_interpreted(kernel, grid, args):
    launch(load_kernel(kernel.source, kernel.entry, kernel.entry), grid, args, dict(kernel.constants), checked=True)


def _launch_compiled(kernel, grid, args):
    filename = f"<triton {kernel.entry} {hash(kernel.source)}>"
    linecache.cache[filename] = (len(kernel.source), None, kernel.source.splitlines(True), filename)
    module = types.ModuleType(kernel.entry)
    exec(compile(kernel.source, filename, "exec"), module.__dict__)
    early = {"launch_pdl": True} if kernel.dependent_launch else {}
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))  # of descriptors
    module.__dict__[kernel.entry][grid](*args, **kernel.constants, num_warps=kernel.num_warps, num_stages=kernel.num_stages, **early)


def _tensor(case, parameter, arg, dims, extra, tokens):
    if arg.name in extra or arg.kind in extra:
        return extra.get(arg.name, extra.get(arg.kind))
    if parameter.role == "out":
        shape = [dims[d] if isinstance(d, str) else d for d in parameter.type.shape]
        return torch.full(shape, float("nan"), dtype=TORCH_DTYPES[parameter.type.dtype])
    if parameter.role == "step":
        return case.inputs[arg.name]
    if parameter.role == "buffer":
        value = case.values[case.graph.value(arg.name)]
        return (value if tokens is None else value[tokens]).contiguous()
    constant = evaluate_constant(case.graph.value(arg.name.removesuffix(".scale")), case.weights)
    if isinstance(constant, QuantizedTensor):
        return constant.scale if parameter.role == "scale" else constant.data
    return constant.contiguous()


def compile_case(case, regime: Regime, arch, limits=LIMITS, **config):
    """(entry, Binary) of each kernel of the emission."""
    for entry, compiled in compile_whole(case, regime, arch, limits, **config):
        yield entry, compiled.binary


def compile_whole(case, regime: Regime, arch, limits=LIMITS, **config):
    """(entry, Compiled) of each kernel of the emission."""
    plan, _, emission = emit_case(case, regime, limits, arch=int(arch.removeprefix("sm_")), **config)
    types = {p.name: f"*{p.type.dtype}" for p in plan.parameters} | {s.name: f"*{s.dtype}" for s in emission.workspaces}
    for text in emission.kernels:
        parameters = tuple((name, types.get(name, "i32")) for name in text.parameters)
        kernel = Kernel(text.entry, "triton", "x.py", text.entry, parameters, text.constants, text.num_warps, text.num_stages)
        yield text.entry, compile_kernel(kernel, text.source, arch)


def relative_error(actual, expected):
    wide = expected.double()
    return float((actual.double() - wide).norm() / wide.norm().clamp_min(1e-9))
