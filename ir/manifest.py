"""What an engine directory says about itself: `manifest.json` as frozen dataclasses. Knows neither graph nor compiler nor device.

The runtime executes an engine from this file alone; the compiler writes it last.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tilewright.ir.errors import EngineError
from tilewright.ir.plain_json import decode, schema_of

SCHEMA = 2
MANIFEST_FILE = "manifest.json"

# Tensors that the runtime fills for each step; kernels name them in `Arg(kind="step")`. B sequences, T tokens, S rows asked for.
STEP_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ids": ("i32", ("T",)),  # token ids of the flattened batch
    "positions": ("i32", ("T",)),  # position of each token in its sequence
    "slots": ("i32", ("T",)),  # page * page_size + offset where the token's key and value go; -1: padding, write nothing
    "rows": ("i32", ("S",)),  # rows of T whose logits are wanted
    "query_start": ("i32", ("B1",)),  # first row of each sequence, then T (B1 = B + 1)
    "context_len": ("i32", ("B",)),  # tokens in the cache after this step's writes; 0: padding sequence, attends to nothing
    "block_table": ("i32", ("B", "P")),  # page of each block of page_size tokens; P = Limits.max_pages_per_sequence
}


SAMPLING = "sampling"  # where the module of a kernel is named: the kernels that sample compute none of the model's
# Columns of the params f32[S, 8] that sampling kernels read.
SAMPLE_PARAMS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    name: str  # directory or hub id, as given
    architecture: str  # HF class name
    vocab_size: int
    dtype: str  # activations: f32, f16, bf16
    quantization: str  # "none" or the quantize pass as text
    num_parameters: int
    max_positions: int  # positions that the model was made for
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    max_batch_size: int  # sequences in one step
    max_input_len: int  # tokens of a prompt
    max_output_len: int  # tokens generated for a request
    max_tokens: int  # tokens of one step, all sequences together
    page_size: int  # tokens of a KV page

    @property
    def max_sequence_len(self) -> int:
        return self.max_input_len + self.max_output_len

    @property
    def max_pages_per_sequence(self) -> int:
        return -(-self.max_sequence_len // self.page_size)


@dataclass(frozen=True, slots=True)
class KVLayer:
    """Paged state of one attention layer: k[pages, heads, page_size, head_dim] and v[pages, heads, page_size, value_dim]."""

    num_heads: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVCache:
    dtype: str
    layers: tuple[KVLayer, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """A grid size: `count * (ceil(dim / per) + plus)`, or `count` where dim is None."""

    count: int = 1
    dim: str | None = None  # T, S or B
    per: int = 1
    plus: str | None = None  # B where every sequence may end in a partial tile

    def __call__(self, dims: dict[str, int]) -> int:
        if self.dim is None:
            return self.count
        return self.count * (-(-dims[self.dim] // self.per) + (dims[self.plus] if self.plus else 0))


def size_grid(grid: tuple[Extent, Extent, Extent], dims: dict[str, int]) -> tuple[int, int, int]:
    x, y, z = grid
    return x(dims), y(dims), z(dims)


@dataclass(frozen=True, slots=True)
class Arg:
    """What a launch passes for one kernel parameter.

    kind: buffer (activation, by name), weight (packed tensor, by name), step (STEP_FIELDS), k_cache / v_cache (layer index as name),
    dim (run-time integer T, S or B).
    """

    kind: Literal["buffer", "weight", "step", "k_cache", "v_cache", "dim"]
    name: str


@dataclass(frozen=True, slots=True)
class Binary:
    """A kernel compiled for one architecture."""

    file: str  # relative to the engine
    symbol: str
    num_warps: int
    shared_bytes: int
    num_registers: int
    stack_bytes: int  # > 0: registers spilled to local memory
    global_scratch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tile that was measured against the default one and chosen for its speed. Times of one launch, in a CUDA graph, with operands from memory."""

    gpu: str  # as the driver names it
    tile: dict[str, int]  # fields of the default tile that it changes
    us: float
    default_us: float

    @property
    def gain(self) -> float:
        """Share of the default's time that it saves."""
        return 1 - self.us / self.default_us


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str  # <region name>_<hash8>; also the stem of its file
    language: Literal["triton", "torch"]
    file: str  # source, relative to the engine
    entry: str  # function in the file
    parameters: tuple[tuple[str, str], ...]  # (name, type): *bf16, *i8, i32 for triton; dtype for torch
    constants: dict[str, int | float | bool] = field(default_factory=dict)  # constexpr arguments, passed by keyword
    num_warps: int = 4
    num_stages: int = 3
    dependent_launch: bool = False  # programmatic dependent launch (sm_90 and later)
    binaries: dict[str, Binary] = field(default_factory=dict)  # by architecture: sm_80, sm_90, ...
    tuned: Tuned | None = None  # None, and not written: the tile is the default


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: str
    args: tuple[Arg, ...]  # one per Kernel.parameters
    grid: tuple[Extent, Extent, Extent]
    region: str  # name of the region, unique in its program
    modules: tuple[str, ...] = ()  # HF module paths whose ops it computes
    reason: str = ""  # why the region was cut there


@dataclass(frozen=True, slots=True)
class Buffer:
    """An activation in the program's arena. Bytes are reserved for `max_tokens` tokens; shape holds T, S or ints.

    zeroed: it lies not there but in memory of its own, at `offset`, that is zero when the engine is loaded; kernels leave it zero again.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    offset: int  # bytes, 256-aligned
    zeroed: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """The launches of one regime. `decode`: every sequence has one token (T = B = S); `ragged`: any mixture of chunks and decodes."""

    name: str
    kind: Literal["decode", "ragged"]
    max_tokens: int  # serves steps of 1..max_tokens tokens; the smallest program that fits is run
    arena_bytes: int
    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
    logits: str  # buffer f32[S, vocab]


@dataclass(frozen=True, slots=True)
class SampleProgram:
    """Launches that sample a token for each of S rows. Each kind does what the ones before it do, and more.

    greedy: without parameters. draw: by temperature, after penalties. filter: with top_k, top_p and min_p too.
    """

    kind: Literal["greedy", "draw", "filter"]
    launches: tuple[Launch, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """Scratch of sampling, which needs no initial value; shape holds S or ints."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Kernels that sample on the device. Args are of kind buffer: spaces, and what the runtime holds for them:

    logits f32[S, vocab], slots i64[S], params f32[S, SAMPLE_PARAMS], uniform f64[S] in [0, 1); written: tokens i32[S], last_token
    i32[slots], history i16[slots, vocab] of rows with penalties (bit 15: in the prompt; below: times sampled).
    """

    kernels: tuple[Kernel, ...]
    programs: tuple[SampleProgram, ...]  # one of each kind
    spaces: tuple[Space, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str  # safetensors file, relative to the engine; the tensor has this entry's name


@dataclass(frozen=True, slots=True)
class Manifest:
    schema: int
    producer: str  # tilewright version that wrote it
    target: str  # cpu, sm_80, sm_90, ...
    model: ModelInfo
    limits: Limits
    cache: KVCache
    programs: tuple[Program, ...]
    kernels: tuple[Kernel, ...]
    weights: tuple[Weight, ...]
    files: dict[str, str] = field(default_factory=dict)  # sha256 of every file beside the manifest, by relative path
    sampling: Sampling | None = None  # None: the runtime samples with torch

    @property
    def all_kernels(self) -> tuple[Kernel, ...]:
        """Those of programs, and those that sample."""
        return self.kernels + (self.sampling.kernels if self.sampling else ())

    @property
    def launch_lists(self) -> dict[str, tuple[Launch, ...]]:
        """Of programs, and of what samples after them: `sampling-greedy` and the other kinds."""
        samples = {f"{SAMPLING}-{p.kind}": p.launches for p in self.sampling.programs} if self.sampling else {}
        return {**{p.name: p.launches for p in self.programs}, **samples}

    def write(self, directory: Path) -> None:
        text = json.dumps(self._as_json(), indent=1, sort_keys=True, ensure_ascii=False)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    def _as_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for kernel in (*data["kernels"], *(data["sampling"] or {"kernels": ()})["kernels"]):
            if kernel["tuned"] is None:
                del kernel["tuned"]
        return data

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Raises EngineError for a missing, unreadable or foreign-schema manifest."""
        path = directory / MANIFEST_FILE
        if not path.is_file() and (directory / "config.json").is_file():
            remedy = f"build an engine from it with: tilewright build {directory} OUT"
            raise EngineError(str(directory), f"is a model, not an engine: it has config.json and no {MANIFEST_FILE}", remedy)
        if not path.is_file():
            raise EngineError(f"engine {directory}", f"no {MANIFEST_FILE} in it", "build one with: tilewright build MODEL " + str(directory))
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise EngineError(f"engine {directory}", f"{MANIFEST_FILE} is not JSON ({error})", "rebuild the engine") from error
        schema = schema_of(data)
        if schema != SCHEMA:
            remedy = f"rebuild it with: tilewright build MODEL {directory}"
            raise EngineError(f"engine {directory}", f"has schema {schema!r}, this version reads schema {SCHEMA}", remedy)
        return decode(Manifest, data, f"engine {directory}: {MANIFEST_FILE}")
