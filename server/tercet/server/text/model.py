"""Everything a checkpoint's files say about text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tercet.server.text.chat import ChatTemplate, folder_template
from tercet.server.text.embedding import EmbeddingDefaults
from tercet.server.text.errors import ChatTemplateError, CheckpointTextError
from tercet.server.text.fields import MAX_TOKEN_ID, Fields
from tercet.server.text.generation import GenerationDefaults, TaskDefaults
from tercet.server.text.labels import Activation, read_activation, read_labels
from tercet.server.text.languages import Languages, read_languages
from tercet.server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Special tokens as older folders spell them that state none: BERT's kin, RoBERTa's.
_SPELLINGS = {
    "mask_token": ("[MASK]", "<mask>"),
    "cls_token": ("[CLS]", "<s>"),
    "unk_token": ("[UNK]", "<unk>"),
}


@dataclass(frozen=True)
class TextModel:
    """A checkpoint's tokenizer, chat template and defaults."""

    source: Path
    """The folder or the .gguf file."""
    tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    """What a seq2seq model's targets are written with, given or generated; `tokenizer` for nearly every checkpoint."""
    languages: Languages | None
    """Those that a translating checkpoint is told; None where it is told none."""
    vocabulary: tuple[Path, str | None]
    """File and key of the tokenizer's tokens."""
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    tasks: dict[str, TaskDefaults]
    """By name; empty for most checkpoints."""
    embedding: EmbeddingDefaults
    labels: tuple[str, ...]
    """What a head that classifies or tags tells apart, by index; without such a head of no meaning."""
    problem_type: str | None
    """"single_label_classification", "multi_label_classification" or "regression"; None where not stated."""
    activation: Activation | None
    """What turns the head's outputs into scores; None where not stated."""
    mask: tuple[str, int] | None
    """What stands for a token to fill in, and its id."""
    start_id: int | None = None
    """The token that sequences of an encoder begin with ([CLS])."""
    unknown_id: int | None = None
    """What stands for what the vocabulary lacks."""
    padding_id: int | None = None
    """What the model's configuration names as padding, which heads that read the last token pass over."""

    @property
    def entailment(self) -> int | None:
        """The label that says that the second text follows from the first."""
        return self._label("entail")

    @property
    def contradiction(self) -> int | None:
        """The label that says that the second text is wrong if the first is right."""
        return self._label("contra")

    def _label(self, beginning: str) -> int | None:
        return next((i for i, label in enumerate(self.labels) if label.lower().startswith(beginning)), None)

    def labelled(self, count: int) -> TextModel:
        """The same with `count` labels, numbered if the files name more or fewer: those of an adapter have no names."""
        if count in (0, len(self.labels)):
            return self
        return replace(self, labels=tuple(f"LABEL_{index}" for index in range(count)))

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, its special tokens spelled out: encode it with add_special_tokens=False.

        Raises ChatTemplateError: no template, or one that refuses these messages.
        """
        if self.chat_template is None:
            raise ChatTemplateError("the checkpoint has no chat template")
        return self.chat_template.render(messages)

    def check_vocabulary(self, vocab_size: int, *, target_vocab_size: int | None = None, seq2seq: bool) -> None:
        """Raises CheckpointTextError where the files name tokens that the model, which has `vocab_size`, lacks.

        `target_vocab_size` counts those that it writes, where they are others than it reads. A seq2seq model whose
        files don't say what its decoder starts from is refused, too.
        """
        written = target_vocab_size or vocab_size
        for tokenizer, size in ((self.tokenizer, vocab_size), (self.target_tokenizer, written)):
            if tokenizer.vocab_size > size:
                problem = f"has token id {tokenizer.vocab_size - 1}, the model has {size} tokens"
                raise CheckpointTextError(*self.vocabulary, problem)
        for token_id, key, file in self.generation.named_ids:
            if token_id >= written:
                raise CheckpointTextError(file, key, f"is {token_id}, the model has {written} tokens")
        if seq2seq and not self.generation.decoder_start_ids:
            raise CheckpointTextError(self.source / "config.json", "decoder_start_token_id", "missing")


def load_text_model(source: Path) -> TextModel:
    """Reads a Hugging Face folder or a .gguf file. Raises CheckpointTextError, which names the file and the key."""
    if source.is_dir():
        return _load_folder(source)
    if not source.exists():
        raise CheckpointTextError(source, None, "does not exist")
    if source.suffix != ".gguf":
        raise CheckpointTextError(source, None, "is neither a Hugging Face folder nor a .gguf file")
    return _load_gguf(source)


def _load_folder(folder: Path) -> TextModel:
    from tercet.server.text.folder import folder_tokenizer

    config = Fields.read(folder / "tokenizer_config.json")
    made = folder_tokenizer(folder, config)
    clean_up = config.boolean("clean_up_tokenization_spaces", False)
    tokenizer = Tokenizer(made.backend, clean_up=clean_up)
    model_config = Fields.read(folder / "config.json")
    mask, start, unknown = (_token(tokenizer, made.special_tokens, name) for name in _SPELLINGS)
    return TextModel(
        source=folder,
        tokenizer=tokenizer,
        target_tokenizer=tokenizer if made.target is made.backend else Tokenizer(made.target, clean_up=clean_up),
        languages=read_languages(made.kind, config, made.backend.get_vocab(), made.special_tokens),
        vocabulary=(made.file, None),
        chat_template=folder_template(folder, config, made.special_tokens),
        generation=GenerationDefaults.from_folder(folder),
        tasks=GenerationDefaults.of_tasks(folder),
        embedding=EmbeddingDefaults.from_folder(folder, _model_max_length(config)),
        labels=read_labels(model_config),
        problem_type=model_config.string("problem_type", None),
        activation=read_activation(model_config),
        mask=mask,
        # without a mask token "<s>" is what a decoder's sequences begin with
        start_id=start[1] if start and (mask or "cls_token" in made.special_tokens) else None,
        unknown_id=unknown[1] if unknown else None,
        padding_id=model_config.integer("pad_token_id", None, -1),
    )


def _load_gguf(file: Path) -> TextModel:
    from tercet.server.text.gguf import gguf_tokenizer, read_metadata

    metadata = read_metadata(file)
    backend, special_tokens = gguf_tokenizer(metadata)
    key = "tokenizer.chat_template"
    template = metadata.string(key, None)
    tokenizer = Tokenizer(backend)
    return TextModel(
        source=file,
        tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        languages=None,
        vocabulary=(file, "tokenizer.ggml.tokens"),
        chat_template=None if template is None else ChatTemplate(template, special_tokens, file=file, key=key),
        generation=GenerationDefaults.from_gguf(metadata),
        tasks={},
        embedding=EmbeddingDefaults(),
        labels=(),
        problem_type=None,
        activation=None,
        mask=None,
    )


def _token(tokenizer: Tokenizer, named: Mapping[str, str], name: str) -> tuple[str, int] | None:
    """A named special token and its id: as stated, else as the tokenizers that state none spell it."""
    for token in [named[name]] if name in named else _SPELLINGS[name]:
        token_id = tokenizer.backend.token_to_id(token)
        if token_id is not None:
            return token, token_id
    return None


def _model_max_length(config: Fields) -> int | None:
    key = "model_max_length"  # transformers writes 1e30 where there is no limit
    value = config.values.get(key)
    return None if isinstance(value, int | float) and value > MAX_TOKEN_ID else config.integer(key, None, 1)
