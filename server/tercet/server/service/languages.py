"""What the languages of a request ask of its texts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.service.errors import InvalidArgumentError
from tercet.server.text import LanguageError

if TYPE_CHECKING:
    from tercet.server.text import Encoded, Languages, TextModel, Translation
    from tercet.v1.generation_pb2 import GenerateRequest
    from tercet.v1.scoring_pb2 import ScoreRequest


def translation(request: GenerateRequest | ScoreRequest, text: TextModel) -> Translation | None:
    """Between which tokens sources are read and what targets begin with; None for a model without languages.

    Raises InvalidArgumentError: a language that the model does not know, or is not told.
    """
    source, target = (
        getattr(request, name) if request.HasField(name) else None for name in ("source_lang", "target_lang")
    )
    if text.languages is not None:
        return _known(text.languages, source, target)
    for name, language in (("source_lang", source), ("target_lang", target)):
        if language is not None:
            raise InvalidArgumentError(name, "must not be set: the model is told no languages")
    return None


def target_translation(request: ScoreRequest, text: TextModel) -> Translation | None:
    """Between which tokens given targets are read, as `translation`; None as the tokenizer has it."""
    if text.languages is None or text.languages.default_source is None:
        return None
    target = request.target_lang if request.HasField("target_lang") else text.languages.default_target
    if target is None:
        raise InvalidArgumentError("target_lang", "must be set: targets begin with their language")
    _known(text.languages, None, target)
    return text.languages.translation(target)


def _known(languages: Languages, source: str | None, target: str | None) -> Translation:
    """Raises InvalidArgumentError."""
    try:
        return languages.translation(source, target)
    except LanguageError as error:
        raise InvalidArgumentError(error.field, str(error)) from None


def surrounded(encoded: Encoded, around: Translation) -> Encoded:
    """A text without special tokens between those of its language."""
    before, after = list(around.before), list(around.after)
    return replace(
        encoded,
        ids=[*before, *encoded.ids, *after],
        type_ids=[0] * (len(before) + len(encoded) + len(after)),
        added_before=len(before),
        added_after=len(after),
    )
