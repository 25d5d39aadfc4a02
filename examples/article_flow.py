"""Build, load, generate by the names that TensorRT-LLM made common: `python examples/article_flow.py [MODEL_DIR] [ENGINE_DIR]`."""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tilewright import Builder
from tilewright.runtime import GenerationConfig, Runtime

PROMPTS = ["Once upon a time", "The little fox"]


def main(model_dir: str, engine_dir: str) -> list[str]:
    builder = Builder()
    config = builder.create_builder_config(max_batch_size=8, max_input_len=64, max_output_len=64, fp16=torch.cuda.is_available(), int8=True)
    engine = builder.build_engine(model_dir=model_dir, config=config, engine_dir=engine_dir)
    print(engine)

    session = Runtime().load_engine(engine)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    input_ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int32)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
    output_ids = session.generate(
        input_ids=input_ids,
        input_lengths=torch.tensor([len(row) for row in rows]),
        generation_config=GenerationConfig(max_new_tokens=40, temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=1),
    )
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in output_ids]
    for prompt, text in zip(PROMPTS, texts):
        print(f"{prompt}|{text}")
    return texts


if __name__ == "__main__":
    here = Path(__file__).parent
    arguments = [*sys.argv[1:], *[str(here / "demo_model"), "build/article"][len(sys.argv) - 1 :]]
    main(arguments[0], arguments[1])
