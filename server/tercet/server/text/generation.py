"""How a checkpoint wants to generate."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# T5's kin start their decoder from the padding token where config.json names no other.
_STARTS_FROM_PADDING = ("t5", "mt5", "umt5")

# The keys that are fields of GenerationDefaults under the same name. Numbers: low, high, and whether low is left out.
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 100, False),
    "top_p": (0, 1, True),
    "min_p": (0, 1, False),
    "typical_p": (0, 1, True),
    "repetition_penalty": (0, 100, True),
    "length_penalty": (-5, 5, False),
}
_INTEGERS = {  # the lowest
    "top_k": 0,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "max_length": 1,
    "min_length": 0,
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}

# Keys that change what transformers generates, and not what we do: with their neutral values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "sequence_bias": ({}, []),
    "force_words_ids": ([],),
    "constraints": ([],),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
    "watermarking_config": (),
}

Value = TypeVar("Value")

log = logging.getLogger(__name__)


class NamedId(NamedTuple):
    """A token id, and the key and file that name it."""

    id: int
    key: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How a checkpoint wants to generate: generation_config.json; where there is none, config.json of older times.

    What the files leave open is neutral: no limit, no filter, no penalty.
    """

    do_sample: bool = False
    """Whether the checkpoint asks for sampling. If not it is greedy, whatever `temperature` says."""
    temperature: float = 1.0
    """Of sampling; in [0, 100], 0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    """0 is off."""
    encoder_no_repeat_ngram_size: int = 0
    """0 is off; of the source's n-grams."""
    num_beams: int = 1
    """1 is no beam search."""
    length_penalty: float = 1.0
    """In [-5, 5], as requests may say it."""
    early_stopping: bool | Literal["never"] = False
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    """As `min_new_tokens`, which comes first, but counted as `max_length`; see `after`."""
    max_length: int | None = None
    """Tokens in all, the prompt (decoder) or the decoder's start tokens (seq2seq) included; see `new_tokens`."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are not generated (bad_words_ids)."""
    suppressed_ids: tuple[int, ...] = ()
    """Tokens that are never generated (suppress_tokens)."""
    first_suppressed_ids: tuple[int, ...] = ()
    """Tokens that are not generated first (begin_suppress_tokens)."""
    forced_bos_id: int | None = None
    """The first token to generate."""
    forced_eos_ids: tuple[int, ...] = ()
    """The last token to generate where the output reaches its limit."""
    eos_ids: tuple[int, ...] = ()
    """Each ends a sequence."""
    decoder_start_ids: tuple[int, ...] = ()
    """What a seq2seq decoder starts from; empty for decoders."""
    named_ids: tuple[NamedId, ...] = field(default=(), compare=False)
    """All of these ids, to say where one that the model has not was read."""

    def after(self, prompt_length: int) -> GenerationDefaults:
        """These, with `min_length` turned into `min_new_tokens` after a prompt as that of `new_tokens`."""
        if self.min_new_tokens or self.min_length <= prompt_length:
            return self
        return replace(self, min_new_tokens=self.min_length - prompt_length)

    def new_tokens(self, prompt_length: int) -> int | None:
        """The checkpoint's own limit after a prompt (decoder) or start tokens (seq2seq) of this many; None is none."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        return max(1, self.max_length - prompt_length)

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """Raises CheckpointTextError: a value of the wrong type or out of its range. Warns of what is not supported.

        As transformers, which reads config.json where there is no generation_config.json. Unlike it, the end and the
        start of a sequence are config.json's too where the newer file leaves them out: without an end none would stop.
        """
        config = Fields.read(folder / "config.json")
        return cls._read(config, [_stated(folder, config)])

    @classmethod
    def of_tasks(cls, folder: Path) -> dict[str, TaskDefaults]:
        """By name what config.json's task_specific_params change. Raises and warns as `from_folder`."""
        config = Fields.read(folder / "config.json")
        stated = _stated(folder, config)
        tasks = config.nested("task_specific_params")
        return {
            name: TaskDefaults(prefix=task.string("prefix", ""), generation=cls._read(config, [task, stated]))
            for name in tasks.values
            if (task := tasks.nested(name))
        }

    @classmethod
    def _read(cls, config: Fields, layers: Sequence[Fields]) -> GenerationDefaults:
        """What `layers` state, of two that state a key the first; `config` says where sequences start and end."""
        top = layers[0]
        for key, neutral in _UNSUPPORTED.items():
            if top.values.get(key) not in (None, *neutral):
                log.warning("%s: %s is not supported and is ignored", top.file, top.path + key)
        values: dict[str, Any] = {}
        for layer in reversed(layers):
            values |= _values(layer)
        suppressed, first_suppressed, forced_bos, forced_eos = (
            _ids(key, layers)
            for key in ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
        )
        if len(forced_bos) > 1:
            raise CheckpointTextError(
                forced_bos[0].file, forced_bos[0].key, f"must be one token id, is {list(_plain(forced_bos))}"
            )
        bad_words = _first([_bad_words(layer) for layer in layers])
        ends = _ids("eos_token_id", [*layers, config])
        starts = _decoder_start([*layers, config])
        return cls(
            **values,
            bad_words=tuple(tuple(token.id for token in word) for word in bad_words),
            suppressed_ids=_plain(suppressed),
            first_suppressed_ids=_plain(first_suppressed),
            forced_bos_id=forced_bos[0].id if forced_bos else None,
            forced_eos_ids=_plain(forced_eos),
            eos_ids=_plain(ends),
            decoder_start_ids=_plain(starts),
            named_ids=(
                *(token for word in bad_words for token in word),
                *(*suppressed, *first_suppressed, *forced_bos, *forced_eos, *ends, *starts),
            ),
        )

    @classmethod
    def from_gguf(cls, metadata: Fields) -> GenerationDefaults:
        """A GGUF file names the tokens that end a sequence or a turn, and no more."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        ends = [end for key in keys for end in _ids(key, [metadata])]
        return cls(eos_ids=tuple(dict.fromkeys(_plain(ends))), named_ids=tuple(ends))


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """What a checkpoint that knows several tasks wants for one of them."""

    prefix: str
    """What is put before the text: "translate English to German: "."""
    generation: GenerationDefaults


def _stated(folder: Path, config: Fields) -> Fields:
    file = folder / "generation_config.json"
    return Fields.read(file) if file.is_file() else config


def _values(fields: Fields) -> dict[str, Any]:
    """The values that `fields` states for the keys that are fields of GenerationDefaults under the same name."""
    stated = {key for key, value in fields.values.items() if value is not None}
    values: dict[str, Any] = {
        key: fields.number(key, low, low, high, above_low=above_low)
        for key, (low, high, above_low) in _NUMBERS.items()
        if key in stated
    }
    values |= {key: fields.integer(key, None, low) for key, low in _INTEGERS.items() if key in stated}
    if "do_sample" in stated:
        values["do_sample"] = fields.boolean("do_sample", False)
    if "early_stopping" in stated:
        value = values["early_stopping"] = fields.values["early_stopping"]
        if value != "never" and not isinstance(value, bool):
            raise fields.error("early_stopping", f"must be true, false or 'never', is {value!r}")
    return values


def _bad_words(fields: Fields) -> list[list[NamedId]]:
    key = "bad_words_ids"
    return [[NamedId(i, fields.path + key, fields.file) for i in word] for word in fields.token_sequences(key)]


def _ids(key: str, layers: Sequence[Fields]) -> list[NamedId]:
    """The token ids of the first that states any."""
    return _first([[NamedId(i, layer.path + key, layer.file) for i in layer.token_ids(key)] for layer in layers])


def _first(stated: Iterable[list[Value]]) -> list[Value]:
    return next(filter(None, stated), [])


def _plain(named: Iterable[NamedId]) -> tuple[int, ...]:
    return tuple(token.id for token in named)


def _decoder_start(layers: Sequence[Fields]) -> list[NamedId]:
    config = layers[-1]
    starts_from_padding = config.string("model_type", "") in _STARTS_FROM_PADDING
    if not config.boolean("is_encoder_decoder", starts_from_padding):
        return []
    if starts := _ids("decoder_start_token_id", layers):
        return starts
    if starts_from_padding:
        return _ids("pad_token_id", [config]) or [NamedId(0, "pad_token_id", config.file)]
    return _ids("bos_token_id", layers)
