"""The bundled demo model: an ordinary checkpoint, its tokenizer, and the stories that it was trained on."""

import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from jinja2.exceptions import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

EXAMPLES = Path(__file__).parents[2] / "examples"
CHECKPOINT = EXAMPLES / "demo_model"
sys.path.insert(0, str(EXAMPLES))

import demo_stories  # noqa: E402
import train_demo_model  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


def continuation(model, tokenizer, ids: list[int], max_new_tokens: int = 256) -> list[int]:
    prompt = torch.tensor([ids])
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False)[0, len(ids) :].tolist()


@pytest.mark.parametrize("text", ["Once upon a time", "naïve café, 東京 🦊\n\ttabs  and spaces ", "don't\r\n", "\x00\x7f ", "שלום"])
def test_any_text_comes_back_from_the_tokenizer_unchanged(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_checkpoint_is_small_and_in_bfloat16():
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 6e6
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")


def test_the_weights_fit_what_the_script_would_train(model, tokenizer):
    fresh = LlamaForCausalLM(train_demo_model.configure(tokenizer))
    assert {name: p.shape for name, p in fresh.named_parameters()} == {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("prompt", ["Once upon a time", "Tell me a story about a brave knight."])
def test_greedy_text_is_a_story_in_known_words_that_ends(model, tokenizer, prompt):
    written = continuation(model, tokenizer, tokenizer.encode(prompt))
    known = set(re.findall(r"[a-z]+", " ".join(itertools.islice(demo_stories.write_documents(0), 1000)).lower()))
    words = re.findall(r"[a-z]+", tokenizer.decode(written, skip_special_tokens=True).lower())
    assert written[-1] == tokenizer.eos_token_id
    assert 60 < len(words) < 250
    assert sum(word in known for word in words) > 0.98 * len(words)


def test_a_chat_request_is_answered_with_a_story_about_that_hero(model, tokenizer):
    messages = [{"role": "user", "content": "Tell me a story about a brave knight."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    story = tokenizer.decode(continuation(model, tokenizer, ids))
    assert "a brave knight" in story
    assert story.endswith("The end.</s>")


def test_the_chat_template_writes_what_the_model_was_trained_on(tokenizer):
    turns = ["Hello!", "Hello! Shall I tell you a story?", "Tell me a story."]
    messages = [{"role": role, "content": turn} for role, turn in zip(("user", "assistant", "user"), turns)]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert written == f"<s>{demo_stories.render_chat(turns)}</s>"
    with pytest.raises(TemplateError, match="role 'system' is unknown"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


def test_a_seed_always_gives_the_same_documents_and_another_gives_others():
    first, again, other = (list(itertools.islice(demo_stories.write_documents(seed), 50)) for seed in (7, 7, 8))
    assert first == again
    assert not set(first) & {text for text in other if len(text) > 200}


def test_every_plot_is_told_without_a_hole():
    stories = [demo_stories.write_story(random.Random(seed)).text for seed in range(300)]
    assert not any(mark in story for story in stories for mark in "{}")
    for plot in demo_stories.PLOTS.values():
        ending = plot[-1][0].split("{")[0].strip() or plot[-1][0].split("}")[-1].strip()
        assert any(ending in story for story in stories)


def test_training_twice_gives_the_same_weights(tmp_path):
    recipe = train_demo_model.Recipe(steps=2, batch_tokens=80, pool=4, tokenizer_documents=20)

    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(recipe.seed)
        tokenizer = train_demo_model.train_tokenizer(recipe)
        model = LlamaForCausalLM(train_demo_model.configure(tokenizer))
        train_demo_model.train(model, tokenizer, recipe)
        train_demo_model.save(model, tokenizer, tmp_path)
        return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
