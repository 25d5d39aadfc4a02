"""Reads the tokenizer that an engine directory carries, and turns prompts of any form into token ids."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

from tilewright.ir.errors import EngineError, RequestError

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

Message = Mapping[str, Any]  # role, content
Prompt = str | list[int] | list[Message]  # text, token ids or a chat


def load_tokenizer(directory: Path) -> Any | None:
    """The transformers tokenizer of the engine, or None where it has none. Runs no code from the directory."""
    if not any((directory / name).is_file() for name in FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"engine {directory}", f"its tokenizer cannot be read ({error})", "rebuild the engine") from error


def is_one_prompt(prompts: Any) -> bool:
    """Whether this is a single prompt, not a list of them."""
    if isinstance(prompts, str):
        return True
    prompts = list(prompts)
    return bool(prompts) and isinstance(prompts[0], (int, Mapping))


def encode(prompt: Any, tokenizer: Any | None, where: str) -> list[int]:
    """Token ids of text, a chat (rendered by the model's template) or ids. Raises RequestError."""
    if hasattr(prompt, "tolist"):  # a tensor or an array
        prompt = prompt.tolist()
    if isinstance(prompt, (str, list, tuple)) and not prompt:
        raise RequestError(where, "the prompt is empty", "pass at least one character or token")
    if isinstance(prompt, str):
        return list(_require(tokenizer, where)(prompt)["input_ids"])
    if isinstance(prompt, (list, tuple)) and isinstance(prompt[0], Mapping):
        return _render_chat(list(prompt), _require(tokenizer, where), where)
    if isinstance(prompt, (list, tuple)) and all(hasattr(token, "__index__") for token in prompt):
        return [index(token) for token in prompt]
    raise RequestError(where, f"the prompt is a {type(prompt).__name__}", "pass text, a list of token ids or a list of chat messages")


def _render_chat(messages: list[Message], tokenizer: Any, where: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(where, "the prompt is a chat, this model's tokenizer has no chat template", "pass text")
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def _require(tokenizer: Any | None, where: str) -> Any:
    if tokenizer is None:
        raise RequestError(where, "the prompt is text, this engine has no tokenizer", "pass token ids")
    return tokenizer
