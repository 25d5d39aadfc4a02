"""Train the demo model: a small Llama that tells short stories, saved as an ordinary Hugging Face checkpoint.

    python examples/train_demo_model.py                               # the bundled model, into examples/demo_model
    python examples/train_demo_model.py --steps 60 --out /tmp/model   # a quick look

It understands three kinds of prompt: the beginning of a story ("Once upon a time"), a request in plain words ("Tell me
a story about a brave knight."), and chat messages through the tokenizer's chat template. The text comes from
`demo_stories.py`, so nothing is downloaded. One thread and fixed seeds: the same machine and torch give the same bytes.
"""

import argparse
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from demo_stories import ROLES, write_documents

HERE = Path(__file__).parent
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception(\"chat: role '\" + message.role + \"' is unknown to this model; use 'user' and 'assistant'\") }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the checkpoint depends on besides the stories."""

    steps: int  # optimizer steps
    seed: int = 0
    batch_tokens: int = 2560  # per step, padding included
    pool: int = 128  # documents that are sorted by length together, so that rows of a batch are equally long
    peak_rate: float = 3e-3  # learning rate after warm-up, falling to a tenth along a cosine
    warmup: int = 40  # steps
    weight_decay: float = 0.1
    tokenizer_documents: int = 4000


def main() -> None:
    """Read the flags, train, save, and show what the model writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (default 600)")
    parser.add_argument("--out", type=Path, default=HERE / "demo_model", help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(recipe)
    model = LlamaForCausalLM(configure(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, recipe)
    save(model, tokenizer, arguments.out)
    for prompt in ("Once upon a time", "Tell me a story about a brave knight."):
        print("---", continue_greedily(model, tokenizer, prompt), sep="\n")


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the stories: any text can be encoded and comes back unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, *ROLES.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1280, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(itertools.islice(write_documents(recipe.seed), recipe.tokenizer_documents), trainer)
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def configure(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Llama 3's shape in small: grouped queries, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def draw_batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches ids: i64[rows, length], one document a row, `pad_token_id` after it, at most `batch_tokens` in all.

    A document ends with the end token and the beginning of a next one, so that text goes on where nothing stops it.
    """
    documents = write_documents(seed)
    shuffle = random.Random(seed)
    while True:
        encoded = [tokenizer.encode(text) for text in itertools.islice(documents, recipe.pool)]
        rows = sorted(([*ids, tokenizer.eos_token_id, tokenizer.bos_token_id] for ids in encoded), key=len)
        batches = []
        while rows:
            num_rows = max(1, recipe.batch_tokens // len(rows[-1]))
            batches.append(rows[-num_rows:])
            del rows[-num_rows:]
        shuffle.shuffle(batches)
        for batch in batches:
            length = max(map(len, batch))
            yield torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in batch])


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """AdamW with warm-up and cosine decay; prints the loss (nats per token) and the held-out loss at the end."""
    batches = draw_batches(tokenizer, recipe, recipe.seed + 1)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == recipe.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s", flush=True)
    held_out = itertools.islice(draw_batches(tokenizer, recipe, recipe.seed + 2), 8)
    with torch.no_grad():
        losses = [loss_of(model, ids).item() for ids in held_out]
    print(f"held-out loss {sum(losses) / len(losses):.4f}")


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear to `peak_rate`, then a cosine down to a tenth of it."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token, padding left out; ids: i64[rows, length]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=model.config.pad_token_id)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write config, generation config, bfloat16 weights and tokenizer; the model stays as rounded."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    model.float()


def continue_greedily(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int = 260) -> str:
    """The prompt and its most likely continuation."""
    ids = torch.tensor([tokenizer.encode(prompt)])
    written = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    main()
