"""A small raised model as text, schedules cut by hand, and the shortest executor of a lowered program: for the tests of this folder."""

import math
from dataclasses import dataclass, field

import torch

import tilewright.ir.ops  # noqa: F401
from tilewright.codegen.lower import lower
from tilewright.ir.interpreter import evaluate_constant, interpret
from tilewright.ir.manifest import Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES, Batch, QuantizedTensor
from tilewright.ir.regions import Placement, Regime, Region, Schedule

LIMITS = Limits(max_batch_size=4, max_input_len=24, max_output_len=8, max_tokens=48, page_size=4)
VIEWS = ("reshape", "slice", "expand")

HEADER = """graph @toy(%ids: i32[T], %positions: i32[T], %rows: i32[S]) dims(T in 1..48, S in 1..48) {
  param @embed.weight : DT[37, 40]
  param @cos : DT[64, RD]
  param @sin : DT[64, RD]
  param @norm.weight : DT[40]
"""
PARAMS = """  param @layers.L.in_norm.weight : DT[40]
  param @layers.L.mid_norm.weight : DT[40]
  param @layers.L.q_norm.weight : DT[10]
  param @layers.L.qkv.weight : DT[80, 40]
  param @layers.L.qkv.bias : DT[80]
  param @layers.L.o.weight : DT[40, 40]
  param @layers.L.gate_up.weight : DT[52, 40]
  param @layers.L.down.weight : DT[40, 26]
"""
BODY = """  %layers.L.n = rms_norm(%IN, @layers.L.in_norm.weight) {eps=1e-05} : DT[T, 40]  loc(model.layers.L.in_norm)
  %layers.L.qkv = linear(%layers.L.n, @layers.L.qkv.weight, @layers.L.qkv.bias) : DT[T, 80]  loc(model.layers.L.attn.qkv)
  %layers.L.q = slice(%layers.L.qkv) {axis=1, start=0, stop=40} : DT[T, 40]
  %layers.L.k = slice(%layers.L.qkv) {axis=1, start=40, stop=60} : DT[T, 20]
  %layers.L.v = slice(%layers.L.qkv) {axis=1, start=60, stop=80} : DT[T, 20]
  %layers.L.qh = reshape(%layers.L.q) {shape=[T, 4, 10]} : DT[T, 4, 10]
  %layers.L.qn = rms_norm(%layers.L.qh, @layers.L.q_norm.weight) {eps=1e-06, rounding=after_scale, offset=1.0} : DT[T, 4, 10]
  %layers.L.qf = reshape(%layers.L.qn) {shape=[T, 40]} : DT[T, 40]
  %layers.L.q_rot = rotary(%layers.L.qf, %cos_t, %sin_t) {head_dim=10, layout=LAYOUT} : DT[T, 40]  loc(model.layers.L.attn.rotary)
  %layers.L.k_rot = rotary(%layers.L.k, %cos_t, %sin_t) {head_dim=10, layout=LAYOUT} : DT[T, 20]  loc(model.layers.L.attn.rotary)
  %layers.L.kv = write_kv(%layers.L.k_rot, %layers.L.v) {kv_heads=2, layer=L} : kv[2, 10, 10]
  %layers.L.context = attend(%layers.L.q_rot, %layers.L.kv) {heads=4, layer=L, scale=0.31ATTEND} : DT[T, 40]  loc(model.layers.L.attn)
  %layers.L.o = linear(%layers.L.context, @layers.L.o.weight) : DT[T, 40]  loc(model.layers.L.attn.o)
  %layers.L.mid = add(%IN, %layers.L.o) : DT[T, 40]
  %layers.L.n2 = rms_norm(%layers.L.mid, @layers.L.mid_norm.weight) {eps=1e-05} : DT[T, 40]  loc(model.layers.L.mid_norm)
  %layers.L.gate_up = linear(%layers.L.n2, @layers.L.gate_up.weight) : DT[T, 52]  loc(model.layers.L.mlp.gate_up)
  %layers.L.act = gated(%layers.L.gate_up) {activation=silu} : DT[T, 26]  loc(model.layers.L.mlp)
  %layers.L.down = linear(%layers.L.act, @layers.L.down.weight) : DT[T, 40]  loc(model.layers.L.mlp.down)
  %layers.L.out = add(%layers.L.mid, %layers.L.down) : DT[T, 40]  loc(model.layers.L)
"""
START = """  %h = embedding(@embed.weight, %ids) : DT[T, 40]  loc(model.embed)
  %cos_t = gather_rows(@cos, %positions) : DT[T, RD]  loc(model.rotary)
  %sin_t = gather_rows(@sin, %positions) : DT[T, RD]  loc(model.rotary)
"""
END = """  %last = gather_rows(%LAST, %rows) : DT[S, 40]  loc(model.norm)
  %final = rms_norm(%last, @norm.weight) {eps=1e-05} : DT[S, 40]  loc(model.norm)
  %logits.DT = linear(%final, @embed.weight) : DT[S, 37]  loc(lm_head)
  %logits = cast(%logits.DT) {dtype=f32} : f32[S, 37]
  return %logits
}
"""
# Regions of a layer: (name, template, values made in it).
LAYER_CUTS = (
    ("in_norm", "rows", "n"), ("qkv", "linear", "qkv"), ("rotary", "rows", "qn q_rot k_rot kv"), ("attend", "attend", "context"),
    ("o", "linear", "o"), ("mid", "rows", "mid n2"), ("gate_up", "linear", "gate_up"), ("act", "rows", "act"), ("down", "linear", "down"),
    ("out", "rows", "out"),
)  # fmt: skip
FUSED_CUTS = (
    ("qkv", "linear", "n qkv"), ("rotary", "rows", "qn q_rot k_rot kv"), ("attend", "attend", "context"), ("o", "linear", "o mid"),
    ("gate_up", "linear", "n2 gate_up act"), ("down", "linear", "down out"),
)  # fmt: skip
# In decode one kernel computes, writes and reads keys and values.
FUSED_DECODE_CUTS = (FUSED_CUTS[0], ("attend", "attend", "qn q_rot k_rot kv context"), *FUSED_CUTS[3:])


def toy_text(dtype="f32", *, layers=2, rotary_dim=10, layout="half", attend="", int8=False, slopes=False):
    text = HEADER + ("  param @slopes : f32[4]\n" if slopes else "")
    for i in range(layers):
        text += PARAMS.replace("layers.L", f"layers.{i}")
    text += START
    for i in range(layers):
        body = BODY.replace("layers.L", f"layers.{i}").replace("layer=L", f"layer={i}").replace("%IN", "%h" if i == 0 else f"%layers.{i - 1}.out")
        if slopes:
            body = body.replace(f"%layers.{i}.kv) {{heads", f"%layers.{i}.kv, @slopes) {{heads")
        if int8:
            for name, n, k in (("qkv", 80, 40), ("gate_up", 52, 40)):
                weight = f"@layers.{i}.{name}.weight"
                text += f"  {weight}.q = quantize({weight}) : i8[{n}, {k}]{{scale=f32}}\n"
                body = body.replace(weight, f"{weight}.q")
        text += body
    text += END.replace("%LAST", f"%layers.{layers - 1}.out")
    return text.replace("DT", dtype).replace("RD", str(rotary_dim)).replace("LAYOUT", layout).replace("ATTEND", attend)


class ToyWeights:
    """Random tensors by name, small enough for products to stay near 1."""

    def __init__(self, graph, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {}
        for name, value in graph.params.items():
            data = torch.randn(value.type.shape, generator=generator)
            if value.type.rank == 2 and name not in ("cos", "sin"):
                data = data / math.sqrt(value.type.shape[1]) * 1.5
            self.tensors[name] = data.to(TORCH_DTYPES[value.type.dtype])

    def load(self, name):
        return self.tensors[name]


def toy_graph(**options):
    return parse_graph(toy_text(**options))


def cut(graph, regime, layer_cuts=LAYER_CUTS):
    """A schedule with the given regions per layer, every buffer in a place of its own."""
    layers = len(graph.find("attend"))
    cuts = [("embed", "rows", "h"), ("tables", "rows", "cos_t sin_t")]
    for i in range(layers):
        cuts += [(f"layers.{i}.{name}", template, " ".join(f"layers.{i}.{v}" for v in values.split())) for name, template, values in layer_cuts]
    cuts += [("norm", "rows", "last final"), ("head", "linear", f"logits.{graph.params['norm.weight'].type.dtype} logits")]
    regions = [_region(graph, *c) for c in cuts]
    placements, offset = [], 0
    for value in (v for r in regions for v in r.outputs if v.type.dtype != "kv"):
        size = value.type.num_bytes({"T": regime.max_tokens, "S": regime.max_tokens})
        placements.append(Placement(value, offset, size))
        offset += -(-size // 256) * 256
    return Schedule(regime, tuple(regions), tuple(placements), offset)


def _region(graph, name, template, values):
    wanted = [graph.value(v).producer for v in values.split()]
    ops = set(wanted)
    stack = list(wanted)
    while stack:
        for value in stack.pop().inputs:
            if value.producer is not None and value.producer.name in VIEWS and not value.is_const and value.producer not in ops:
                ops.add(value.producer)
                stack.append(value.producer)
    ordered = tuple(op for op in graph.ops if op in ops)
    made = [v for op in ordered for v in op.results]
    inputs = tuple(dict.fromkeys(v for op in ordered for v in op.inputs if v not in made))
    outputs = tuple(v for op in wanted for v in op.results if v in graph.outputs or any(_leaves(u, ops) for u in v.users))
    anchor = next((op for op in wanted if op.name == template), wanted[-1])
    return Region(name, template, ordered, anchor, inputs, outputs, "cut by hand")


def _leaves(user, ops):
    return user not in ops or (user.name in VIEWS and any(_leaves(u, ops) for v in user.results for u in v.users))


@dataclass
class Batcher:
    """Step tensors for sequences that own pages, in the order of a shuffled pool; `lengths` counts tokens in the cache."""

    limits: Limits
    tables: list = field(default_factory=list)
    lengths: list = field(default_factory=list)

    @staticmethod
    def of(count, limits, seed=0):
        per = limits.max_pages_per_sequence
        pool = torch.randperm(count * per, generator=torch.Generator().manual_seed(seed)).tolist()
        return Batcher(limits, [pool[i * per : (i + 1) * per] for i in range(count)], [0] * count)

    def step(self, chunks, padding=0):
        """chunks: new tokens of each sequence, as lists; `padding` adds empty decode rows."""
        ids, positions, slots, starts = [], [], [], [0]
        page = self.limits.page_size
        for i, chunk in enumerate(chunks):
            for token in chunk:
                at = self.lengths[i]
                ids.append(token)
                positions.append(at)
                slots.append(self.tables[i][at // page] * page + at % page)
                self.lengths[i] += 1
            starts.append(len(ids))
        step = {
            "ids": ids + [0] * padding, "positions": positions + [0] * padding, "slots": slots + [-1] * padding,
            "rows": [s - 1 for s in starts[1:]] + [len(ids) + i for i in range(padding)],
            "query_start": starts + [starts[-1] + i + 1 for i in range(padding)], "context_len": self.lengths[:] + [0] * padding,
            "block_table": self.tables + [[0] * len(self.tables[0])] * padding,
        }  # fmt: skip
        return {k: torch.tensor(v, dtype=torch.int32) for k, v in step.items()}


class Executor:
    """Runs the launches of a lowered program one after the other; `call(kernel, grid, args)` runs one kernel."""

    def __init__(self, lowered, weights, call, pages, fill=float("nan")):
        self.lowered, self.call = lowered, call
        self.kernels = {k.name: k for k in lowered.kernels}
        self.weights = {}
        for name, value in lowered.constants.items():
            data = evaluate_constant(value, weights)
            if isinstance(data, QuantizedTensor):
                self.weights[f"{name}.scale"], data = data.scale, data.data
            self.weights[name] = data.contiguous()
        dtype = TORCH_DTYPES[lowered.cache.dtype]
        page = LIMITS.page_size
        self.cache = [
            tuple(torch.full((pages, layer.num_heads, page, dim), fill, dtype=dtype) for dim in (layer.head_dim, layer.value_dim))
            for layer in lowered.cache.layers
        ]

    def run(self, program, step):
        dims = {"T": len(step["ids"]), "S": len(step["rows"]), "B": len(step["context_len"])}
        arena = torch.full((program.arena_bytes,), 0xFF, dtype=torch.uint8)  # NaN everywhere
        buffers = {}
        for b in program.buffers:
            shape = [dims[d] if isinstance(d, str) else d for d in b.shape]
            size = math.prod(shape) * TORCH_DTYPES[b.dtype].itemsize
            assert b.zeroed or b.offset + size <= program.arena_bytes
            memory = torch.zeros(b.offset + size, dtype=torch.uint8) if b.zeroed else arena
            buffers[b.name] = memory[b.offset : b.offset + size].view(TORCH_DTYPES[b.dtype]).view(shape)
        pick = {
            "buffer": buffers.__getitem__, "weight": self.weights.__getitem__, "step": step.__getitem__, "dim": dims.__getitem__,
            "k_cache": lambda i: self.cache[int(i)][0], "v_cache": lambda i: self.cache[int(i)][1],
        }  # fmt: skip
        for launch in program.launches:
            args = [pick[a.kind](a.name) for a in launch.args]
            self.call(self.kernels[launch.kernel], tuple(g(dims) for g in launch.grid), args)
        assert all(not buffers[b.name].any() for b in program.buffers if b.zeroed), "zeroed scratch is left zero"
        return buffers[program.logits].clone()


def torch_call(lowered):
    functions = {}
    for kernel in lowered.kernels:
        namespace = {}
        exec(compile(lowered.sources[kernel.name], kernel.name, "exec"), namespace)
        functions[kernel.name] = namespace[kernel.entry]
    return lambda kernel, grid, args: functions[kernel.name](*args)


def expected_logits(graph, weights, sequences):
    """Logits of the last token of each sequence, by the reference interpreter."""
    batch = Batch.of_lengths([len(s) for s in sequences])
    inputs = {
        "ids": torch.tensor([t for s in sequences for t in s], dtype=torch.int32),
        "positions": torch.tensor([i for s in sequences for i in range(len(s))], dtype=torch.int32),
        "rows": torch.tensor([s - 1 for s in batch.starts[1:]], dtype=torch.int32),
    }
    return interpret(graph, inputs, weights, batch=batch)[0]


def lower_toy(graph, target, layer_cuts=LAYER_CUTS):
    regimes = (Regime("decode", "decode", 8), Regime("prefill", "ragged", LIMITS.max_tokens))
    cuts = (FUSED_DECODE_CUTS if layer_cuts is FUSED_CUTS else layer_cuts, layer_cuts)
    return lower(graph, [cut(graph, *pair) for pair in zip(regimes, cuts)], target=target, limits=LIMITS)


def serve(executor, graph, weights):
    """Three prompts in chunks, then two decode steps with a padding row: (got, expected) logits of each step."""
    decode, prefill = executor.lowered.programs
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [35, 8, 9, 7, 9]]
    batcher = Batcher.of(3, LIMITS)
    pairs = []
    got = executor.run(prefill, batcher.step([prompts[0][:3], prompts[1], prompts[2][:4]]))
    pairs.append((got, expected_logits(graph, weights, [prompts[0][:3], prompts[1], prompts[2][:4]])))
    got = executor.run(prefill, batcher.step([prompts[0][3:], [11], prompts[2][4:]]))
    prompts[1].append(11)
    pairs.append((got, expected_logits(graph, weights, prompts)))
    for token in (20, 36):
        for prompt in prompts:
            prompt.append(token)
        got = executor.run(decode, batcher.step([[token]] * 3, padding=1))[:3]
        pairs.append((got, expected_logits(graph, weights, prompts)))
    return pairs
