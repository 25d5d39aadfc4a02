"""The command line. Each command parses, calls one function of the package, and prints; errors are one sentence on stderr and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.ir.errors import TilewrightError

commands = typer.Typer(name="tilewright", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
bench = typer.Typer(no_args_is_help=True, help="Time an engine on this machine.")
commands.add_typer(bench, name="bench")

EnginePath = Annotated[Path, typer.Argument(metavar="ENGINE", help="directory that `tilewright build` wrote")]
Count = Annotated[int | None, typer.Option(metavar="N")]


def app(args: list[str] | None = None) -> None:
    """The `tilewright` program."""
    try:
        commands(args=args)
    except TilewrightError as error:
        print(f"tilewright: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(f"  {note}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what we print to has closed: `tilewright show ... | head`
        sys.stderr.close()
        sys.exit(0)


@commands.command()
def build(
    model: Annotated[str, typer.Argument(help="directory with config.json and *.safetensors, or a hub id")],
    out: Annotated[Path, typer.Argument(help="engine directory to write; an engine that is there is replaced")],
    dtype: Annotated[str | None, typer.Option(help="of activations: float32, float16 or bfloat16 (default: the checkpoint's)")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8, or the text of a pass")] = None,
    target: Annotated[str | None, typer.Option(help="cpu, cuda (this machine's GPU) or sm_<number> (default: cuda where there is one)")] = None,
    max_batch_size: Annotated[int, typer.Option(help="sequences in one step")] = 16,
    max_input_len: Annotated[int | None, typer.Option(help="tokens of a prompt")] = None,
    max_output_len: Annotated[int | None, typer.Option(help="tokens generated for a request")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="tokens of one step, all sequences together")] = None,
    page_size: Annotated[int, typer.Option(help="tokens of a KV page")] = 16,
    pipeline: Annotated[str | None, typer.Option("--pipeline", "-p", help="pass pipeline in place of the default one")] = None,
) -> None:
    """Compile a Hugging Face model into an engine."""
    from tilewright.compiler import compile
    from tilewright.stages import Stages

    engine = compile(
        model, out, dtype=dtype, quantize=quantize, target=target, pipeline=pipeline, max_batch_size=max_batch_size, max_input_len=max_input_len,
        max_output_len=max_output_len, max_tokens=max_tokens, page_size=page_size, stages=Stages(bars=True, lines=True),
    )  # fmt: skip
    print(engine)
    print(f"look at it: tilewright show {out};  run it: tilewright run {out} \"Once upon a time\"")


@commands.command()
def run(
    engine: EnginePath,
    prompt: Annotated[str | None, typer.Argument(help="text to go on from")] = None,
    ids: Annotated[str | None, typer.Option(help="token ids in place of text, as in \"1 15 27\"")] = None,
    max_tokens: Count = 100,
    min_tokens: int = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same tokens")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end before this text; may be given more than once")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past the end-of-text token")] = False,
    max_cache_tokens: Annotated[int | None, typer.Option(help="size of the page pool")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu (default: the engine's target)")] = None,
) -> None:
    """Generate from a prompt; text is printed as it comes."""
    from tilewright.runtime import LLM, SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, stop=stop or None,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, ignore_eos=ignore_eos,
    )  # fmt: skip
    given = parse_prompt(prompt, ids)
    llm = LLM(engine, max_cache_tokens=max_cache_tokens, device=device, use_progress=True)
    stream_text(llm, given, params)


def parse_prompt(prompt: str | None, ids: str | None) -> str | list[int]:
    if (prompt is None) == (ids is None):
        raise TilewrightError("run", "got a prompt and --ids" if ids else "got no prompt", 'pass text, or --ids "1 15 27"')
    if ids is None:
        return str(prompt)
    try:
        return [int(word) for word in ids.replace(",", " ").split()]
    except ValueError as error:
        raise TilewrightError("run", f"--ids is {ids!r}", 'pass whole numbers, as in "1 15 27"') from error


def stream_text(llm: Any, prompt: str | list[int], params: Any) -> None:
    """Prints text as it comes (token ids where there is no tokenizer), then what it took on stderr."""
    import time

    has_text = llm.tokenizer is not None
    if isinstance(prompt, str):
        print(prompt, end="", flush=True)
    started, output = time.perf_counter(), None
    for output in llm.generate([prompt], params, stream=True):
        new = output.new_text if has_text else "".join(f"{token} " for token in output.new_token_ids)
        print(new, end="", flush=True)
    print()
    if output is not None:
        seconds = time.perf_counter() - started
        rate = f"{len(output.token_ids) / seconds:.0f} tokens/s"
        print(f"[{len(output.token_ids)} tokens in {seconds:.2f} s, {rate}, ended by {output.finish_reason}]", file=sys.stderr)


@commands.command()
def show(
    what: Annotated[Path, typer.Argument(metavar="ENGINE_OR_IR", help="an engine directory or an .ir file")],
    stage: Annotated[str | None, typer.Argument(metavar="[PASS]", help="graph after that pass (default: the last), `kernels` or `passes`")] = None,
    layer: Annotated[int | None, typer.Option(help="only ops of this layer")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="every layer, not folded")] = False,
) -> None:
    """Print the graph at any stage (equal layers folded), the passes, or the kernels of an engine."""
    from tilewright.show import print_text, render

    print_text(render(what, stage, layer=layer, flat=flat))


@commands.command()
def opt(
    file: Annotated[Path, typer.Argument(metavar="FILE.ir", help="graph as text; no weights are needed")],
    pipeline: Annotated[str | None, typer.Option("--pipeline", "-p", help="text of a pipeline (default: the default one)")] = None,
    print_after_all: Annotated[bool, typer.Option("--print-after-all", help="print the graph after every pass, on stderr")] = False,
    flat: Annotated[bool, typer.Option("--flat", help="every layer, not folded")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write there, not to stdout")] = None,
) -> None:
    """Run passes on a graph and print what comes out."""
    from tilewright.compiler import optimize
    from tilewright.ir.fold import fold_text
    from tilewright.ir.printer import print_graph
    from tilewright.show import print_text, read_graph

    render = print_graph if flat else fold_text

    def print_stage(name: str, graph: Any) -> None:
        print(f"// after {name}\n{render(graph)}", file=sys.stderr)

    result = optimize(read_graph(file), pipeline, after_each=print_stage if print_after_all else None)
    text = render(result.graph)
    if output is None:
        print_text(text)
    else:
        output.write_text(text, encoding="utf-8")


@commands.command()
def passes(name: Annotated[str | None, typer.Argument(help="one pass, with its options")] = None) -> None:
    """List the default pipeline and every pass there is, yours among them."""
    from tilewright.show import describe_pass, describe_passes, print_text

    print_text(describe_passes() if name is None else describe_pass(name))


@bench.command()
def latency(
    engine: EnginePath,
    prompt_len: Annotated[int, typer.Option(help="tokens of the prompt")] = 128,
    outputs: Annotated[tuple[int, int], typer.Option(help="two output lengths, whose difference is timed")] = (16, 144),
    repeat: int = 3,
) -> None:
    """Decode of one sequence: ms per token, as the slope between two output lengths."""
    from tilewright.measure import measure_latency, measure_read_limit
    from tilewright.runtime import LLM

    llm = LLM(engine, use_progress=True)
    limits = llm.manifest.limits
    check_bench("--prompt-len", prompt_len, "max_input_len", limits.max_input_len)
    check_bench("--outputs", max(outputs), "max_output_len", limits.max_output_len)
    if outputs[0] >= outputs[1]:
        raise TilewrightError("bench latency", f"--outputs is {outputs[0]} {outputs[1]}", "pass the shorter length first")
    found = measure_latency(llm, prompt_len=prompt_len, outputs=outputs, repeat=repeat)
    share = ""
    if llm.engine.backend.device.type == "cuda":
        rate = found.bytes_per_token / found.ms_per_token * 1e3
        limit = measure_read_limit()
        share = f", {rate / 1e12:.2f} TB/s: {rate / limit:.0%} of this GPU's read limit of {limit / 1e12:.2f} TB/s"
    print(f"{found.ms_per_token:.3f} ms/token (spread {found.spread_ms:.3f}), {found.bytes_per_token / 1e9:.3g} GB of weights a token{share}")


@bench.command()
def throughput(
    engine: EnginePath,
    requests: Annotated[int, typer.Option(help="number of requests, all handed over at once")] = 64,
    prompt_lens: Annotated[tuple[int, int], typer.Option(help="shortest and longest prompt, in tokens")] = (16, 128),
    output_lens: Annotated[tuple[int, int], typer.Option(help="shortest and longest output, in tokens")] = (16, 128),
) -> None:
    """Many random requests served together: output tokens per second."""
    from tilewright.measure import measure_throughput
    from tilewright.runtime import LLM

    llm = LLM(engine, use_progress=True)
    check_bench("--prompt-lens", max(prompt_lens), "max_input_len", llm.manifest.limits.max_input_len)
    check_bench("--output-lens", max(output_lens), "max_output_len", llm.manifest.limits.max_output_len)
    found = measure_throughput(llm, num_requests=requests, prompt_lens=prompt_lens, output_lens=output_lens)
    print(
        f"{found.output_tokens_per_second:.0f} output tokens/s: {found.num_requests} requests, {found.num_prompt_tokens} tokens in, "
        f"{found.num_output_tokens} out, {found.seconds:.2f} s"
    )


def check_bench(flag: str, value: int, limit: str, allowed: int) -> None:
    if value > allowed:
        raise TilewrightError("bench", f"{flag} is {value}, this engine has {limit}={allowed}", f"pass at most {allowed}")
