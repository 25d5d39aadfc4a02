"""Prompts and results as text: an engine with a tokenizer, stop strings, streams, chats."""

import dataclasses

import numpy as np
import pytest
import test_llm
import torch
import toy_engine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tilewright.ir.errors import RequestError
from tilewright.runtime.llm import LLM
from tilewright.runtime.sampling_params import SamplingParams

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,!é–日"[: toy_engine.VOCAB - 2] + "♞"
TEMPLATE = "{% for m in messages %}{{ m.content }}.{% endfor %}{% if add_generation_prompt %}B{% endif %}"


def make_tokenizer():
    vocab = {char: i for i, char in enumerate(dict.fromkeys(ALPHABET))}
    assert len(vocab) == toy_engine.VOCAB - 1
    tokenizer = Tokenizer(models.BPE({**vocab, "<end>": toy_engine.EOS}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text") / "toy"
    toy_engine.write_engine(directory, test_llm.LIMITS, seed=3)
    make_tokenizer().save_pretrained(directory)
    return LLM(directory)


PARAMS = SamplingParams(max_tokens=28, temperature=1.0, seed=5, ignore_eos=True)


def test_text_is_that_of_the_generated_tokens(llm):
    results = llm.generate(["Once upon", "a time"], PARAMS)
    for result in results:
        assert result.text == llm.tokenizer.decode(result.token_ids, skip_special_tokens=True)
        assert len(result.token_ids) == 28 and result.finish_reason == "length"
    assert results[0].prompt_token_ids == llm.tokenizer("Once upon")["input_ids"]


def test_a_stop_string_cuts_text_and_ends_the_request(llm):
    whole = llm.generate("Knights", PARAMS)[0]
    stop = whole.text[9:12]
    place = whole.text.find(stop)
    for params in (dataclasses.replace(PARAMS, stop=stop), dataclasses.replace(PARAMS, stop=["zzz", stop + "?", stop])):
        result = llm.generate("Knights", params)[0]
        assert (result.text, result.finish_reason) == (whole.text[:place], "stop")
        assert result.token_ids == whole.token_ids[: place + len(stop)]
        pieces = [output.new_text for output in llm.generate("Knights", params, stream=True)]
        assert "".join(pieces) == whole.text[:place]


def test_a_stop_string_does_not_count_before_min_tokens(llm):
    whole = llm.generate("Knights", PARAMS)[0]
    early = whole.text[4]
    expected = whole.text.find(early, 16)
    result = llm.generate("Knights", dataclasses.replace(PARAMS, stop=early, min_tokens=17))[0]
    assert result.text == (whole.text[:expected] if expected >= 0 else whole.text)


def test_stop_tokens_are_in_the_tokens_and_not_in_the_text(llm):
    whole = llm.generate("Bread", PARAMS)[0]
    stop = whole.token_ids[7]
    first = whole.token_ids.index(stop)
    params = dataclasses.replace(PARAMS, stop_token_ids=[stop])
    result = llm.generate("Bread", params)[0]
    assert result.token_ids == whole.token_ids[: first + 1] and result.finish_reason == "stop"
    assert result.text == llm.tokenizer.decode(whole.token_ids[:first])
    assert "".join(output.new_text for output in llm.generate("Bread", params, stream=True)) == result.text


def test_a_stream_tells_the_text_of_every_prompt_in_pieces(llm):
    prompts = ["one", "two and", "three"]
    whole = llm.generate(prompts, PARAMS)
    texts = ["", "", ""]
    for output in llm.generate(prompts, PARAMS, stream=True):
        index = int(output.request_id.rsplit("-", 1)[1])
        texts[index] += output.new_text
        assert output.text == texts[index]
    assert texts == [result.text for result in whole]


def test_a_stream_that_is_left_ends_its_requests(llm):
    for _ in llm.generate(["one", "two"], PARAMS, stream=True):
        break
    assert not llm.has_work and llm.core.scheduler.pool.num_used == 0


def test_a_chat_is_rendered_by_the_template(llm):
    chat = [{"role": "user", "content": "who rides"}, {"role": "assistant", "content": "a knight"}]
    text = "who rides.a knight.B"
    assert llm.generate(chat, PARAMS)[0].token_ids == llm.generate(text, PARAMS)[0].token_ids
    assert llm.generate([chat, chat[:1]], PARAMS)[0].token_ids == llm.generate(text, PARAMS)[0].token_ids


@pytest.mark.parametrize("chat", [[{"prompt": "hello"}], [{"role": "user"}], [{"role": "user", "content": "a"}, "b"]])
def test_messages_without_role_or_content_are_refused(llm, chat):
    with pytest.raises(RequestError, match=r'prompt 0: message . is .* pass messages such as {"role": "user", "content": "Hello"}'):
        llm.generate(chat, PARAMS)


def test_messages_that_the_template_does_not_take_are_refused(llm, monkeypatch):
    monkeypatch.setattr(llm.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="prompt 0: the model's chat template does not take these messages"):
        llm.generate([{"role": "user", "content": "a"}], PARAMS)


def test_prompts_may_come_from_an_iterator_and_ids_from_numpy(llm):
    ids = llm.tokenizer("Once upon")["input_ids"]
    whole = llm.generate("Once upon", PARAMS)[0].token_ids
    arrays = (np.array(ids), np.array([ids]), torch.tensor([ids]), [torch.tensor(ids)])
    for prompts in (iter(["Once upon"]), [np.int64(token) for token in ids], *arrays):
        assert [result.token_ids for result in llm.generate(prompts, PARAMS)] == [whole]


@pytest.mark.parametrize("prompt", ["", [], None, 3.5])
def test_prompts_of_no_known_form_are_refused(llm, prompt):
    with pytest.raises(RequestError, match=r"prompt 0: the prompt is (empty|a NoneType|a float)"):
        llm.generate([prompt], PARAMS)


def test_prompts_and_parameters_must_agree_in_number(llm):
    with pytest.raises(RequestError, match="2 prompts and 3 sampling parameters"):
        llm.generate(["a", "b"], [PARAMS] * 3)
