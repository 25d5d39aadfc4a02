"""The flow by TensorRT-LLM's names: the example as it stands, and its session against `LLM`."""

import importlib.util
from pathlib import Path

import pytest
import torch
import zoo

import tilewright as tw
from tilewright.runtime import GenerationConfig, Runtime

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("session")
    config = tw.Builder().create_builder_config(max_batch_size=4, max_input_len=16, max_output_len=8, int8=True, target="cpu")
    return tw.Builder().build_engine(model_dir=zoo.save("llama3", folder / "model", layers=1), config=config, engine_dir=folder / "engine")


def test_the_example_builds_loads_and_generates(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("article_flow", EXAMPLES / "article_flow.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    texts = example.main(str(EXAMPLES / "demo_model"), str(tmp_path / "engine"))
    assert len(texts) == 2 and all(len(text.split()) > 5 for text in texts)


def test_padded_rows_give_what_each_prompt_gives_to_llm(engine):
    rows = [[5, 9, 2], [7], [1, 2, 3, 4, 5]]
    padded = torch.zeros(3, 5, dtype=torch.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    found = Runtime().load_engine(engine).generate(
        input_ids=padded, input_lengths=[3, 1, 5], generation_config=GenerationConfig(max_new_tokens=6, temperature=0.0)
    )
    llm = tw.LLM(engine.path)
    assert found == [output.token_ids for output in llm.generate(rows, tw.SamplingParams(max_tokens=6, temperature=0.0))]


def test_fp16_and_int8_reach_the_engine(tmp_path):
    config = tw.Builder().create_builder_config(max_batch_size=2, max_input_len=8, max_output_len=8, fp16=True, int8=True, target="cpu")
    engine = tw.Builder().build_engine(model_dir=zoo.save("llama3", tmp_path / "model", layers=1), config=config, engine_dir=tmp_path / "engine")
    assert engine.manifest.model.dtype == "f16"
    assert "i8" in {weight.dtype for weight in engine.manifest.weights}


def test_an_unknown_field_of_the_config_is_refused_by_name():
    with pytest.raises(tw.TilewrightError, match="has no field 'int4'; it has max_batch_size"):
        tw.Builder().create_builder_config(int4=True)


@pytest.mark.parametrize("lengths, said", [([2], "input_lengths has 1"), ([2, 9], "input_lengths[1] is 9"), ([0, 1], "input_lengths[0] is 0")])
def test_lengths_that_do_not_fit_the_rows_are_refused(engine, lengths, said):
    with pytest.raises(tw.TilewrightError) as caught:
        Runtime().load_engine(engine).generate(input_ids=[[1, 2, 3], [4, 5, 6]], input_lengths=lengths)
    assert said in str(caught.value)
