"""What a request asks of the sampler, in the fields and defaults of vLLM. Knows neither model nor engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir.errors import RequestError

MAX_LOGPROBS = 20  # alternatives reported per token at most
MAX_LOGIT_BIAS = 1024  # entries of logit_bias at most
MAX_STOP_IDS = 64  # stop_token_ids at most
LARGEST = 1e30  # number taken, and 1 / the smallest divisor: what logits become must fit float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Raises RequestError at once for a value that cannot be served."""

    max_tokens: int | None = 16  # tokens to generate at most; None: as many as the engine allows
    min_tokens: int = 0  # until then, end-of-text and stop_token_ids cannot be sampled and stop strings do not stop
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # smallest set of tokens whose probabilities reach this; 1: all
    top_k: int = 0  # most probable tokens to keep; 0 or -1: all
    min_p: float = 0.0  # keep tokens at least this probable relative to the most probable; 0: all
    repetition_penalty: float = 1.0  # divides (multiplies) positive (negative) logits of tokens seen in prompt or output
    presence_penalty: float = 0.0  # subtracted from logits of tokens seen in the output
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the output
    seed: int | None = None  # the same seed gives the same tokens whatever else is served; None: drawn afresh
    stop: str | list[str] | tuple[str, ...] | None = None  # text is cut before the first of these
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None  # report the chosen token's log-probability and this many alternatives; None: neither
    logit_bias: dict[int, float] = field(default_factory=dict)  # added to the logits, by token id

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_shape(self)
        _check_penalties(self)
        _check_stops(self)
        _check_bias(self)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def has_filters(self) -> bool:
        """Whether top_k or top_p removes anything, which needs the logits in order."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0)


def _refuse(name: str, value: object, remedy: str) -> None:
    raise RequestError("sampling parameters", f"{name}={value!r}", remedy)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _check_counts(p: SamplingParams) -> None:
    if p.max_tokens is not None and not (_is_int(p.max_tokens) and p.max_tokens >= 1):
        _refuse("max_tokens", p.max_tokens, "pass a whole number of at least 1, or None for as many as the engine allows")
    if not (_is_int(p.min_tokens) and p.min_tokens >= 0):
        _refuse("min_tokens", p.min_tokens, "pass a whole number of at least 0")
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        _refuse("min_tokens", p.min_tokens, f"pass at most max_tokens={p.max_tokens}")
    if p.logprobs is not None and not (_is_int(p.logprobs) and 0 <= p.logprobs <= MAX_LOGPROBS):
        _refuse("logprobs", p.logprobs, f"pass None or a whole number from 0 to {MAX_LOGPROBS}")
    if p.seed is not None and not _is_int(p.seed):
        _refuse("seed", p.seed, "pass None or a whole number")


def _check_shape(p: SamplingParams) -> None:
    if not (_is_number(p.temperature) and p.temperature >= 0):
        _refuse("temperature", p.temperature, f"pass a number from 0 to {LARGEST:g} (0 is greedy)")
    if not (_is_number(p.top_p) and 0 < p.top_p <= 1):
        _refuse("top_p", p.top_p, "pass a number over 0 and up to 1 (1 keeps all tokens)")
    if not (_is_int(p.top_k) and p.top_k >= -1):
        _refuse("top_k", p.top_k, "pass a whole number of at least 1, or 0 to keep all tokens")
    if not (_is_number(p.min_p) and 0 <= p.min_p <= 1):
        _refuse("min_p", p.min_p, "pass a number from 0 to 1 (0 keeps all tokens)")


def _check_penalties(p: SamplingParams) -> None:
    if not (_is_number(p.repetition_penalty) and p.repetition_penalty >= 1 / LARGEST):
        _refuse("repetition_penalty", p.repetition_penalty, f"pass a number over 0 and up to {LARGEST:g} (1 changes nothing)")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(p, name)
        if not (_is_number(value) and -2 <= value <= 2):
            _refuse(name, value, "pass a number from -2 to 2 (0 changes nothing)")


def _check_stops(p: SamplingParams) -> None:
    if p.stop is not None and not isinstance(p.stop, (str, list, tuple)):
        _refuse("stop", p.stop, "pass a string or a list of strings")
    if not all(isinstance(text, str) and text for text in p.stop_strings):
        _refuse("stop", p.stop, "pass strings of at least one character")
    ids = () if p.stop_token_ids is None else p.stop_token_ids
    if not isinstance(ids, (list, tuple)) or not all(_is_int(token) and token >= 0 for token in ids):
        _refuse("stop_token_ids", p.stop_token_ids, "pass a list of token ids")
    if len(ids) > MAX_STOP_IDS:
        _refuse("stop_token_ids", f"{len(ids)} ids", f"pass at most {MAX_STOP_IDS}")
    if not isinstance(p.ignore_eos, bool):
        _refuse("ignore_eos", p.ignore_eos, "pass True or False")


def _check_bias(p: SamplingParams) -> None:
    if not isinstance(p.logit_bias, dict) or len(p.logit_bias) > MAX_LOGIT_BIAS:
        _refuse("logit_bias", p.logit_bias, f"pass a dict from token id to a number, with at most {MAX_LOGIT_BIAS} entries")
    for token, value in p.logit_bias.items():
        if not (_is_int(token) and token >= 0 and _is_number(value)):
            _refuse("logit_bias", {token: value}, f"pass token ids (whole numbers) and numbers up to {LARGEST:g}")
