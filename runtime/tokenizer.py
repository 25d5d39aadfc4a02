"""Reads the tokenizer that an engine directory carries, and turns prompts of any form into token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from operator import index as as_int
from pathlib import Path
from typing import Any

from tilewright.ir.errors import EngineError, RequestError

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

Message = Mapping[str, Any]  # role, content
Prompt = str | list[int] | list[Message]  # text, token ids or a chat


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in FILES)


def load_tokenizer(directory: Path) -> Any | None:
    """The transformers tokenizer of the engine, or None where it has none. Runs no code from the directory."""
    if not has_tokenizer(directory):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"engine {directory}", f"its tokenizer cannot be read ({error})", "rebuild the engine") from error


def split_prompts(prompts: Any) -> list[Any]:
    """The prompts in what a user gave: a single one, or several."""
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        return [prompts]
    items = list(prompts)
    return [items] if items and isinstance(items[0], (Integral, Mapping)) else items


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
        return [as_int(token) for token in prompt]
    raise RequestError(where, f"the prompt is a {type(prompt).__name__}", "pass text, a list of token ids or a list of chat messages")


def _render_chat(messages: list[Message], tokenizer: Any, where: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(where, "the prompt is a chat, this model's tokenizer has no chat template", "pass text")
    from jinja2 import TemplateError

    remedy = 'pass messages such as {"role": "user", "content": "Hello"}'
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or not {"content", "tool_calls"} & message.keys():
            raise RequestError(where, f"message {index} is {message!r:.60}, without role or content", remedy)
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
    except (TemplateError, TypeError) as error:
        raise RequestError(where, f"the model's chat template does not take these messages ({error})", remedy) from error


def _require(tokenizer: Any | None, where: str) -> Any:
    if tokenizer is None:
        raise RequestError(where, "the prompt is text, this engine has no tokenizer", "pass token ids")
    return tokenizer
