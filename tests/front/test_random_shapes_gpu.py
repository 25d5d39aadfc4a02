"""Models of shapes that nobody tuned for, drawn anew each time: odd head counts, sizes that no tile divides, batches of 1 to 257."""

import random

import pytest
import torch
from serving import relative_error
from transformers import AutoConfig, AutoModelForCausalLM

import tilewright as tw

pytestmark = pytest.mark.gpu

BATCHES = (1, 2, 9, 33, 100, 257)
BORDERS = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129)  # tokens of a prompt about the ends of pages and tiles
NEW_TOKENS, CHECKED, POOL = 4, 12, 1 << 15
ALLOWED = 1.5  # times the error of transformers in the same dtype


def draw_model(dice):
    kv_heads = dice.choice([1, 2, 3, 5])
    heads = kv_heads * dice.choice([1, 3, 4, 7])
    config = AutoConfig.for_model(
        dice.choice(["llama", "qwen3"]), vocab_size=50257, num_hidden_layers=2, hidden_size=heads * dice.choice([24, 40, 56, 88]),
        intermediate_size=dice.choice([344, 1000, 1368]), num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=dice.choice([24, 64, 80, 96, 128]), max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        tie_word_embeddings=dice.random() < 0.5,
    )  # fmt: skip
    torch.manual_seed(dice.randrange(1 << 30))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("turn", range(3))
def test_a_model_of_any_shape_serves_any_batch_as_transformers_does(turn, tmp_path):
    seed = random.SystemRandom().randrange(1 << 30)
    dice = random.Random(seed)
    model = draw_model(dice)
    limits = {"max_batch_size": 257, "max_input_len": 256, "max_output_len": 8, "max_tokens": 2048, "page_size": dice.choice([16, 64])}
    model.save_pretrained(tmp_path / "model")
    exact = tw.LLM(tw.compile(tmp_path / "model", tmp_path / "f32", target="cuda", **limits).path, max_cache_tokens=POOL)
    half = tw.LLM(tw.compile(tmp_path / "model", tmp_path / "bf16", dtype="bfloat16", target="cuda", **limits).path, max_cache_tokens=POOL)
    model, short = model.cuda(), AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).cuda().eval()
    for batch in BATCHES:
        lengths = [dice.choice([*BORDERS, dice.randint(1, 200)]) for _ in range(batch)]
        prompts = [[dice.randrange(50257) for _ in range(length)] for length in lengths]
        where = f"seed {seed}, batch {batch}, {model.config.to_diff_dict()}"
        outputs = generate(exact, prompts)
        for index in dice.sample(range(batch), min(batch, CHECKED)):
            tokens = outputs[index].token_ids
            expected = last_logits(model, prompts[index] + tokens[:-1])
            assert tokens == expected.argmax(-1).tolist(), f"{where}: request {index} of {lengths[index]} tokens"
            assert relative_error(torch.tensor(chosen(outputs[index])), likelihoods(expected, tokens)) < 1e-3, where
        outputs = generate(half, prompts)
        found, ours, theirs = [], [], []
        for index in dice.sample(range(batch), min(batch, CHECKED)):
            tokens, text = outputs[index].token_ids, prompts[index] + outputs[index].token_ids[:-1]
            found.append(likelihoods(last_logits(model, text), tokens))
            ours.append(torch.tensor(chosen(outputs[index])))
            theirs.append(likelihoods(last_logits(short, text), tokens))
        expected, ours, theirs = map(torch.cat, (found, ours, theirs))
        assert (ours - expected).norm() <= ALLOWED * (theirs - expected).norm() + 1e-3 * expected.norm(), where


def generate(llm, prompts):
    return llm.generate(prompts, tw.SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, logprobs=0, ignore_eos=True), use_progress=False)


def chosen(output):
    return [step[token].logprob for step, token in zip(output.logprobs, output.token_ids)]


def likelihoods(logits, tokens):
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


@torch.no_grad()
def last_logits(model, ids):
    tokens = torch.tensor([ids], device=model.device)
    positions = torch.arange(len(ids), device=model.device)[None]
    return model(input_ids=tokens, position_ids=positions, use_cache=False).logits[0, -NEW_TOKENS:].float().cpu()
