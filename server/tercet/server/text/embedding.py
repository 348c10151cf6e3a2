"""How a checkpoint wants to embed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from tercet.server.text.fields import Fields, read_json

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["mean", "cls", "last", "max"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingDefaults:
    """How a checkpoint wants to embed: sentence-transformers' files, else the mean, normalised."""

    pooling: Pooling = "mean"
    normalize: bool = True
    max_length: int | None = None
    """Tokens, special tokens included; None where the files name no limit."""
    lowercase: bool = False
    """Whether texts are lowered before they are tokenized, as sentence-transformers does; the service's part."""
    prompts: dict[str, str] = field(default_factory=dict[str, str])
    """By name what is put before a text: "query: "."""
    default_prompt: str | None = None
    """The name of the prompt where a request names none; None is no prompt."""

    @classmethod
    def from_folder(cls, folder: Path, model_max_length: int | None) -> EmbeddingDefaults:
        """`model_max_length` is the tokenizer's, for folders that name no other.

        Raises CheckpointTextError: malformed files, a module or a pooling that there is no support for.
        """
        modules = folder / "modules.json"
        if not modules.is_file():
            return cls(max_length=model_max_length)
        prompts, default_prompt = _prompts(folder / "config_sentence_transformers.json")
        pooling, normalize = _modules(modules, prompted=any(prompts.values()))
        sentence = Fields.read(folder / "sentence_bert_config.json")
        return cls(
            pooling=pooling,
            normalize=normalize,
            max_length=sentence.integer("max_seq_length", model_max_length, 1),
            lowercase=sentence.boolean("do_lower_case", False),
            prompts=prompts,
            default_prompt=default_prompt,
        )


# 1_Pooling/config.json: the older files have one flag a kind, the newer ones one name.
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_POOLING_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}


def _prompts(file: Path) -> tuple[dict[str, str], str | None]:
    fields = Fields.read(file)
    stated = fields.nested("prompts")
    prompts = {name: stated.string(name, "") for name in stated.values}
    default = fields.string("default_prompt_name", None)
    if default is not None and default not in prompts:
        names = ", ".join(prompts) or "no prompts"
        raise fields.error("default_prompt_name", f"must be one of {names}, is {default!r}")
    return prompts, default


def _modules(file: Path, *, prompted: bool) -> tuple[Pooling, bool]:
    modules = read_json(file)
    pooling: Pooling = "mean"
    normalize = False
    if not isinstance(modules, list):
        raise Fields(file, {}).error("modules", "must be a list")
    for index, entry in enumerate(modules):
        module = Fields(file, entry if isinstance(entry, dict) else {})
        kind = module.string("type", "").rpartition(".")[2]
        match kind:
            case "Transformer" | "Dense":  # both the engine's part
                pass
            case "Pooling":
                path = PurePosixPath(module.string("path", ""))
                if path.is_absolute() or ".." in path.parts:
                    raise module.error(f"[{index}].path", f"must lie in the checkpoint's folder, is {str(path)!r}")
                pooling = _pooling(Fields.read(file.parent / path / "config.json"), prompted=prompted)
            case "Normalize":
                normalize = True
            case _:
                raise module.error(f"[{index}].type", f"must be Transformer, Pooling, Dense or Normalize, is {kind!r}")
    return pooling, normalize


def _pooling(fields: Fields, *, prompted: bool) -> Pooling:
    if prompted and not fields.boolean("include_prompt", True):
        raise fields.error("include_prompt", "must be true: prompts are pooled like the text that follows them")
    name = fields.string("pooling_mode", None)
    if name is not None:
        if name not in _POOLING_NAMES:
            raise fields.error("pooling_mode", f"must be one of {', '.join(_POOLING_NAMES)}, is {name!r}")
        return _POOLING_NAMES[name]
    chosen = [key for key in fields.values if key.startswith("pooling_mode_") and fields.boolean(key, False)]
    if len(chosen) != 1 or chosen[0] not in _POOLING_FLAGS:
        raise fields.error("pooling_mode", f"exactly one of {', '.join(_POOLING_FLAGS)} must be true, found {chosen}")
    return _POOLING_FLAGS[chosen[0]]
