"""What a checkpoint's files say about generating and embedding."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tercet.server.text.fields import Fields, read_json

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["mean", "cls", "last", "max"]

# T5's kin start their decoder from the padding token where config.json names no other.
_STARTS_FROM_PADDING = ("t5", "mt5", "umt5")

# Keys of generation_config.json that change what transformers generates, and not what we do: with their neutral values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
}

log = logging.getLogger(__name__)


class NamedId(NamedTuple):
    """A token id, and the key and file that name it."""

    id: int
    key: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How a checkpoint wants to generate: generation_config.json; token ids it doesn't state are config.json's.

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
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    """As `min_new_tokens`, which comes first, but counted as `max_length`; see `after`."""
    max_length: int | None = None
    """Tokens in all, the prompt (decoder) or the decoder's start tokens (seq2seq) included; see `new_tokens`."""
    eos_ids: tuple[int, ...] = ()
    """Each ends a sequence."""
    decoder_start_ids: tuple[int, ...] = ()
    """What a seq2seq decoder starts from; empty for decoders."""
    named_ids: tuple[NamedId, ...] = field(default=(), compare=False)
    """All of these ids, to say where one that the model has not was read."""

    def after(self, prompt_length: int) -> GenerationDefaults:
        """These, with `min_length` turned into `min_new_tokens` after a prompt as that of `new_tokens`."""
        return replace(self, min_new_tokens=self.min_new_tokens or max(0, self.min_length - prompt_length))

    def new_tokens(self, prompt_length: int) -> int | None:
        """The checkpoint's own limit after a prompt (decoder) or start tokens (seq2seq) of this many; None is none."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        return max(1, self.max_length - prompt_length)

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """Raises CheckpointTextError: a value of the wrong type or out of its range. Warns of what is not supported."""
        config = Fields.read(folder / "config.json")
        fields = Fields.read(folder / "generation_config.json")
        for key, neutral in _UNSUPPORTED.items():
            if fields.values.get(key) not in (None, *neutral):
                log.warning("%s: %s is not supported and is ignored", fields.file, key)
        ends = _ids("eos_token_id", fields, config)
        starts = _decoder_start(fields, config)
        return cls(
            do_sample=fields.boolean("do_sample", False),
            temperature=fields.number("temperature", 1.0, 0, 100),
            top_k=fields.integer("top_k", 0, 0),
            top_p=fields.number("top_p", 1.0, 0, 1, above_low=True),
            min_p=fields.number("min_p", 0.0, 0, 1),
            repetition_penalty=fields.number("repetition_penalty", 1.0, 0, 100, above_low=True),
            max_new_tokens=fields.integer("max_new_tokens", None, 1),
            min_new_tokens=fields.integer("min_new_tokens", 0, 0),
            min_length=fields.integer("min_length", 0, 0),
            max_length=fields.integer("max_length", None, 1),
            eos_ids=tuple(end.id for end in ends),
            decoder_start_ids=tuple(start.id for start in starts),
            named_ids=(*ends, *starts),
        )

    @classmethod
    def from_gguf(cls, metadata: Fields) -> GenerationDefaults:
        """A GGUF file names the tokens that end a sequence or a turn, and no more."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        ends = [end for key in keys for end in _ids(key, metadata)]
        return cls(eos_ids=tuple(dict.fromkeys(end.id for end in ends)), named_ids=tuple(ends))


def _ids(key: str, *files: Fields) -> list[NamedId]:
    """The token ids of the first file that states any."""
    stated = ([NamedId(i, key, fields.file) for i in fields.token_ids(key)] for fields in files)
    return next(filter(None, stated), [])


def _decoder_start(fields: Fields, config: Fields) -> list[NamedId]:
    starts_from_padding = config.string("model_type", "") in _STARTS_FROM_PADDING
    if not config.boolean("is_encoder_decoder", starts_from_padding):
        return []
    if starts := _ids("decoder_start_token_id", fields, config):
        return starts
    if starts_from_padding:
        return _ids("pad_token_id", config) or [NamedId(0, "pad_token_id", config.file)]
    return _ids("bos_token_id", fields, config)


@dataclass(frozen=True, kw_only=True)
class EmbeddingDefaults:
    """How a checkpoint wants to embed: sentence-transformers' files, else the mean, normalised."""

    pooling: Pooling = "mean"
    normalize: bool = True
    max_length: int | None = None
    """Tokens, special tokens included; None where the files name no limit."""
    lowercase: bool = False
    """Whether texts are lowered before they are tokenized, as sentence-transformers does; the service's part."""

    @classmethod
    def from_folder(cls, folder: Path, model_max_length: int | None) -> EmbeddingDefaults:
        """`model_max_length` is the tokenizer's, for folders that name no other.

        Raises CheckpointTextError: malformed files, a module or a pooling that there is no support for.
        """
        modules = folder / "modules.json"
        if not modules.is_file():
            return cls(max_length=model_max_length)
        pooling, normalize = _modules(modules)
        sentence = Fields.read(folder / "sentence_bert_config.json")
        return cls(
            pooling=pooling,
            normalize=normalize,
            max_length=sentence.integer("max_seq_length", model_max_length, 1),
            lowercase=sentence.boolean("do_lower_case", False),
        )


# 1_Pooling/config.json: the older files have one flag a kind, the newer ones one name.
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_POOLING_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}


def _modules(file: Path) -> tuple[Pooling, bool]:
    modules = read_json(file)
    pooling: Pooling = "mean"
    normalize = False
    if not isinstance(modules, list):
        raise Fields(file, {}).error("modules", "must be a list")
    for index, entry in enumerate(modules):
        module = Fields(file, entry if isinstance(entry, dict) else {})
        kind = module.string("type", "").rpartition(".")[2]
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                path = PurePosixPath(module.string("path", ""))
                if path.is_absolute() or ".." in path.parts:
                    raise module.error(f"[{index}].path", f"must lie in the checkpoint's folder, is {str(path)!r}")
                pooling = _pooling(file.parent / path / "config.json")
            case "Normalize":
                normalize = True
            case _:
                raise module.error(f"[{index}].type", f"must be Transformer, Pooling or Normalize, is {kind!r}")
    return pooling, normalize


def _pooling(file: Path) -> Pooling:
    fields = Fields.read(file)
    name = fields.string("pooling_mode", None)
    if name is not None:
        if name not in _POOLING_NAMES:
            raise fields.error("pooling_mode", f"must be one of {', '.join(_POOLING_NAMES)}, is {name!r}")
        return _POOLING_NAMES[name]
    chosen = [key for key in fields.values if key.startswith("pooling_mode_") and fields.boolean(key, False)]
    if len(chosen) != 1 or chosen[0] not in _POOLING_FLAGS:
        raise fields.error("pooling_mode", f"exactly one of {', '.join(_POOLING_FLAGS)} must be true, found {chosen}")
    return _POOLING_FLAGS[chosen[0]]
