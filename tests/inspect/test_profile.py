"""Where a step's time goes: what each launch adds, the bytes that it must move, and what the command prints."""

import json
from itertools import pairwise

import pytest
from serving import LIMITS, engine_of, model_of

import tilewright as tw
from tilewright.cli import app
from tilewright.inspect.perf import profile_here, read_profile, save_profile
from tilewright.inspect.profile import SETTLE, attribute_time, print_profile, profile_decode, profile_prompt, to_trace
from tilewright.ir.errors import EngineError
from tilewright.measure import bytes_per_token


@pytest.fixture(scope="module")
def engine():
    return engine_of("llama3")


def test_launches_that_overlap_add_what_lies_between_their_ends():
    step = [(0.0, 5.0), (3.0, 9.0), (4.0, 10.0)]  # the third started before the second ended, and waited
    spans = [(start + 100 * i, end + 100 * i) for i in range(SETTLE + 4) for start, end in step]
    assert attribute_time(spans, 3) == [5.0, 4.0, 1.0]


def test_a_recording_that_holds_other_kernels_is_refused():
    with pytest.raises(EngineError, match="recorded 4 kernels, steps have 3 launches"):
        attribute_time([(0.0, 1.0)] * 4, 3)


def test_every_launch_has_a_time_and_the_weights_are_read_once(engine):
    llm = tw.LLM(engine.path)
    found = profile_decode(llm, batch=3, context=20)
    program = next(p for p in engine.manifest.programs if p.name == found.program)
    assert [t.launch for t in found.times] == list(program.launches) and all(t.us > 0 for t in found.times)
    assert found.step_us > 0 and found.wall_us > 0
    weights = bytes_per_token(engine.manifest)
    assert 18 <= found.context <= 26
    cache = found.context * 3 * sum(layer.num_heads * (layer.head_dim + layer.value_dim) for layer in engine.manifest.cache.layers) * 4
    total = sum(t.num_bytes for t in found.times)
    assert weights + cache < total < weights + cache + 3 * 40_000, "weights, keys and values, and a few activations"


def test_a_prompt_has_the_work_of_all_its_tokens(engine, tmp_path):
    llm, tokens = tw.LLM(engine.path), 21
    found = profile_here(llm, prompt=tokens)
    manifest = engine.manifest
    program = next(p for p in manifest.programs if p.name == found.program)
    assert program.kind == "ragged" and [t.launch for t in found.times] == list(program.launches) and all(t.us > 0 for t in found.times)
    config, layers = model_of("llama3").config, manifest.cache.layers
    products = sum(m.weight.numel() for name, m in model_of("llama3").named_modules() if type(m).__name__ == "Linear" and name != "lm_head")
    heads = config.num_attention_heads * sum(layer.head_dim + layer.value_dim for layer in layers)
    expected = 2 * (products * tokens + config.vocab_size * config.hidden_size) + 2 * heads * tokens * (tokens + 1) // 2
    assert sum(t.operations for t in found.times) == expected
    assert f"a prompt of {tokens} tokens" in print_profile(found)
    recorded = read_profile(save_profile(tmp_path, found, llm.engine.backend.device))
    assert (recorded.tokens, recorded.context, recorded.batch) == (tokens, tokens, 1)
    with pytest.raises(EngineError, match=f"prompt is 1000, this engine runs 2 to {LIMITS['max_tokens']} tokens"):
        profile_prompt(llm, tokens=1000)


def test_the_last_tokens_are_those_of_a_run_that_was_not_profiled(engine):
    llm = tw.LLM(engine.path)
    profile_decode(llm, batch=2, context=12)
    params = tw.SamplingParams(max_tokens=6, temperature=0.0)
    assert llm.generate([[1, 2, 3]], params)[0].token_ids == tw.LLM(engine.path).generate([[1, 2, 3]], params)[0].token_ids


def test_equal_kernels_share_a_row_and_a_layer_has_its_own(engine):
    found = profile_decode(tw.LLM(engine.path), batch=1, context=8, limit=1e12)
    whole = print_profile(found)
    assert "model.layers.{0..1}.self_attn" in whole and "read limit 1.00 TB/s" in whole
    rows = print_profile(found, layer=1).splitlines()[4:]
    assert rows and all("model.layers.1" in row for row in rows)
    slices = to_trace(found)["traceEvents"]
    assert [s["args"]["region"] for s in slices] == [t.launch.region for t in found.times]
    assert all(abs(a["ts"] + a["dur"] - b["ts"]) < 1e-6 for a, b in pairwise(slices))


@pytest.mark.parametrize("kind", ["greedy", "filter"])
def test_kernels_that_sample_are_launches_of_the_step(kind):
    """Times of the interpreter mean nothing; what is timed, and what it is called, is that of a GPU."""
    compiled = engine_of("llama3", "sm_90")
    llm = tw.LLM(compiled.path, device="cpu")
    found = profile_decode(llm, batch=2, context=6, limit=1e12, sampling=kind)
    sampled = [t for t in found.times if t.samples]
    program = next(p for p in compiled.manifest.sampling.programs if p.kind == kind)
    assert [t.launch.kernel for t in sampled] == [launch.kernel for launch in program.launches]
    assert [t.samples for t in found.times] == sorted(t.samples for t in found.times), "they come last"
    assert found.sampling_us == sum(t.us for t in sampled) > 0
    logits = 2 * compiled.manifest.model.vocab_size * 4
    assert [t.num_bytes for t in sampled] == ([logits, 0] if kind == "greedy" else [logits, 0, logits, 0])
    text = print_profile(found)
    assert f"{kind} sampling is" in text and any(row.split()[-2:] == [sampled[0].launch.kernel, "sampling"] for row in text.splitlines())
    assert {s["args"]["modules"] == ["sampling"] for s in to_trace(found)["traceEvents"]} == {False, True}


def test_a_way_of_sampling_that_there_is_not_is_refused(engine):
    with pytest.raises(EngineError, match="sampling is 'beam'; pass greedy, draw, filter"):
        profile_decode(tw.LLM(engine.path), batch=1, context=8, sampling="beam")


@pytest.mark.parametrize("batch, context, said", [(LIMITS["max_batch_size"] + 1, 8, "has max_batch_size=6"), (1, 1, "has room for 2 to 63")])
def test_what_does_not_fit_is_refused(engine, batch, context, said):
    with pytest.raises(EngineError, match=said):
        profile_decode(tw.LLM(engine.path), batch=batch, context=context)


def test_the_command_prints_and_writes_a_trace(engine, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        app(["profile", str(engine.path), "--context", "8", "--trace", str(tmp_path / "t.json")])
    assert not ended.value.code and "launches one by one" in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    with pytest.raises(SystemExit) as ended:
        app(["profile", str(engine.path), "--context", "8", "--trace", str(tmp_path)])
    assert ended.value.code == 2 and "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        app(["profile", str(engine.path), "--prompt", "8", "--batch", "2"])
    assert ended.value.code == 2 and "pass one or the other" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_the_launches_add_up_to_the_replay_of_their_graph():
    found = profile_decode(tw.LLM(engine_of("llama3", "cuda").path, max_cache_tokens=512), batch=2, context=20)
    assert all(t.us >= 0 for t in found.times) and 0.5 * found.step_us < found.sum_us < 1.5 * found.step_us
