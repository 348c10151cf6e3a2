"""The values that say how tokens are chosen: checked, and filled up from the checkpoint's own."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Literal

from tercet.server import wire
from tercet.server.service.errors import InvalidArgumentError
from tercet.server.service.fields import choice
from tercet.server.service.ranges import RANGES, check_ranges
from tercet.server.service.sequences import check_ids, id_count, take_ids
from tercet.v1.generation_pb2 import EarlyStopping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.config import Settings
    from tercet.server.text import GenerationDefaults, Tokenizer
    from tercet.v1.generation_pb2 import SamplingParameters

_MOST_BIASES = 1024
_STOP_IDS = "sampling.stop_token_ids"
_MOST_BAD_WORDS = 1024
_EARLY_STOPPING: dict[int, bool | Literal["never"]] = {
    EarlyStopping.EARLY_STOPPING_FALSE: False,
    EarlyStopping.EARLY_STOPPING_TRUE: True,
    EarlyStopping.EARLY_STOPPING_NEVER: "never",
}
# Named alike in requests, in what checkpoints say and on the wire.
_OWN = (
    "min_new_tokens",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
)
# Most requests set nothing else.
_WITHOUT_OTHER_LIMITS = (RANGES.keys() - {"top_logprobs"}) | {"seed", "ignore_eos", "skip_special_tokens", "echo"}
_NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": False,
    "top_logprobs": 0,
}


def check(sampling: SamplingParameters, settings: Settings, vocab_size: int) -> None:
    """Raises InvalidArgumentError for values out of range, lists too long, strings empty, ids unknown."""
    check_ranges(sampling)
    if {field.name for field, _ in sampling.ListFields()} <= _WITHOUT_OTHER_LIMITS:
        return
    if sampling.HasField("n") and not 1 <= sampling.n <= settings.max_outputs:
        raise InvalidArgumentError("sampling.n", f"{sampling.n} is not in [1, {settings.max_outputs}]")
    for name, values, most in (
        ("stop", sampling.stop.values, settings.max_stops),
        ("stop_token_ids", range(id_count(sampling.stop_token_ids)), settings.max_stops),
        ("bad_words", sampling.bad_words.values, _MOST_BAD_WORDS),
        ("logit_bias", sampling.logit_bias, _MOST_BIASES),
    ):
        if len(values) > most:
            raise InvalidArgumentError(f"sampling.{name}", f"has {len(values)} elements, the limit is {most}")
    for name, texts in (("stop", sampling.stop.values), ("bad_words", sampling.bad_words.values)):
        for i, text in enumerate(texts):
            if not 1 <= len(text) <= settings.max_stop_chars:
                problem = f"has {len(text)} characters, must have at least 1 and at most {settings.max_stop_chars}"
                raise InvalidArgumentError(f"sampling.{name}.values[{i}]", problem)
    if id_count(sampling.stop_token_ids):
        check_ids(_STOP_IDS, sampling.stop_token_ids, vocab_size)
    forced = {f"sampling.{name}": getattr(sampling, name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
    biased = {f"sampling.logit_bias[{id}]": id for id in sampling.logit_bias}
    for field, token_id in (forced | biased).items():
        if token_id >= vocab_size:
            raise InvalidArgumentError(field, f"{token_id} is not below the vocabulary size, {vocab_size}")
    if sampling.early_stopping:
        choice("sampling.early_stopping", sampling.early_stopping, "an EarlyStopping", _EARLY_STOPPING)
    if sampling.top_logprobs and not sampling.logprobs:
        raise InvalidArgumentError("sampling.top_logprobs", "needs logprobs")


def wanted_tokens(sampling: SamplingParameters, defaults: GenerationDefaults, prompt_tokens: int) -> int | None:
    """The most tokens to generate as the request, else the checkpoint says; None where neither does."""
    if sampling.HasField("max_new_tokens"):
        return sampling.max_new_tokens
    return defaults.new_tokens(prompt_tokens)


def resolve(
    sampling: SamplingParameters,
    defaults: GenerationDefaults,
    tokenizer: Tokenizer,
    *,
    wanted: int | None,
    room: int,
    forced_bos_id: int | None,
) -> wire.Sampling:
    """Every value concrete: the request's, else the checkpoint's, else neutral.

    `tokenizer` reads what is generated, `room` is the most tokens that fit, `forced_bos_id` what the target's language
    begins with. Raises InvalidArgumentError.
    """
    values: dict[str, Any] = {
        "temperature": defaults.temperature if defaults.do_sample else 0.0,
        "seed": secrets.randbits(64),
        **{name: getattr(defaults, name) for name in _OWN},
        **_NEUTRAL,
    }
    values.update((field.name, value) for field, value in sampling.ListFields() if field.name in values)
    max_new_tokens = min(room, wanted) if wanted is not None else room
    if values["min_new_tokens"] > (wanted if wanted is not None else room):
        if sampling.HasField("min_new_tokens"):
            most = f"max_new_tokens, {wanted}" if wanted is not None else f"the room left, {room}"
            raise InvalidArgumentError("sampling.min_new_tokens", f"{values['min_new_tokens']} is more than {most}")
        values["min_new_tokens"] = max_new_tokens
    if sampling.HasField("forced_bos_token_id"):
        forced_bos_id = sampling.forced_bos_token_id
    elif forced_bos_id is None:
        forced_bos_id = defaults.forced_bos_id
    forced_eos_ids = list(defaults.forced_eos_ids)
    if sampling.HasField("forced_eos_token_id"):
        forced_eos_ids = [sampling.forced_eos_token_id]
    bad_words = [list(word) for word in defaults.bad_words]
    if sampling.HasField("bad_words"):
        bad_words = _bad_words(sampling.bad_words.values, tokenizer)
    return wire.Sampling(
        max_new_tokens=max_new_tokens,
        logit_bias=dict(sampling.logit_bias),
        encoder_no_repeat_ngram_size=defaults.encoder_no_repeat_ngram_size,
        bad_words=bad_words,
        suppressed_ids=list(defaults.suppressed_ids),
        first_suppressed_ids=list(defaults.first_suppressed_ids),
        forced_bos_id=forced_bos_id,
        forced_eos_ids=forced_eos_ids,
        early_stopping=_EARLY_STOPPING.get(sampling.early_stopping, defaults.early_stopping),
        **values,
    )


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each word, as it begins a text and as it follows a space. Raises InvalidArgumentError."""
    found: list[list[int]] = []
    for i, word in enumerate(words):
        for text in (word, f" {word}"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if not ids:
                raise InvalidArgumentError(f"sampling.bad_words.values[{i}]", "has no tokens")
            if ids not in found:
                found.append(ids)
    return found


def stop_ids(sampling: SamplingParameters) -> list[int]:
    """The tokens at which generation ends. Raises InvalidArgumentError."""
    given = sampling.stop_token_ids
    return list(take_ids(_STOP_IDS, given)) if id_count(given) else []


def check_beams(sampling: SamplingParameters, resolved: wire.Sampling, n: int, *, rows: int, fitting: int) -> None:
    """Raises InvalidArgumentError for what can't be had with beams, or for more outputs or beams than fit.

    `rows`: sequences of a batch; `fitting`: beams of so many tokens that the pages hold beside the prompt.
    """
    beams = resolved.num_beams
    for name, count in (("n", n), ("num_beams", beams)):
        if count > rows:
            raise InvalidArgumentError(f"sampling.{name}", f"{count} is more than the model's max_rows, {rows}")
    if beams == 1:
        return
    if n > beams:
        raise InvalidArgumentError("sampling.n", f"{n} is more than num_beams, {beams}")
    if resolved.temperature > 0:
        whose = "temperature" if sampling.HasField("temperature") else "num_beams"
        problem = f"{beams} beams are searched, not sampled: set temperature to 0, or num_beams to 1 to sample"
        raise InvalidArgumentError(f"sampling.{whose}", problem)
    for name, unwanted in (("stop", sampling.stop.values), ("logprobs", sampling.logprobs)):
        if unwanted:
            raise InvalidArgumentError(f"sampling.{name}", f"not with num_beams, {beams}; set num_beams to 1")
    if beams > fitting:
        problem = f"{beams} is more than fit the model's pages with {resolved.max_new_tokens} tokens each, {fitting}"
        raise InvalidArgumentError("sampling.num_beams", problem)
