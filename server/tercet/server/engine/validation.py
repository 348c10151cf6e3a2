"""What an engine refuses before it runs, so that no request reaches a kernel that could read beyond a table.

The service checks the same with the names of its own fields; here it is the last line of defence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.server.engine.memory import longest_sequence
from tercet.server.wire import Embed, Generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.models import Model
    from tercet.server.wire import EngineSettings, Family

SEED_LIMIT = 1 << 64
MAX_SAMPLES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine can take."""

    family: Family
    vocab_size: int
    token_types: int
    """Type ids of the encoder; 0 if it has none."""
    max_length: int
    pages: int
    page_size: int

    def refusal(self, message: Embed | Generate) -> str | None:
        """Why `message` can't be served, or None. What these limits allow fits the pages: there are enough for that."""
        return self._embed_error(message) if isinstance(message, Embed) else self._generate_error(message)

    def _embed_error(self, message: Embed) -> str | None:
        if self.family != "encoder":
            return f"a {self.family} does not embed"
        types = message.type_ids
        if types is not None and len(types) != len(message.token_ids):
            return f"type_ids has {len(types)} elements for {len(message.token_ids)} token_ids"
        if types and self.token_types and not _within(types, self.token_types):
            return f"type_ids must lie in 0..{self.token_types - 1}"
        return self._ids_error("token_ids", message.token_ids, self.max_length)

    def _generate_error(self, message: Generate) -> str | None:
        if self.family == "encoder":
            return "an encoder does not generate"
        sampling = message.sampling
        if not 0 <= sampling.seed < SEED_LIMIT:
            return f"seed must be an unsigned 64-bit number, not {sampling.seed}"
        if sampling.max_new_tokens < 1 or not 1 <= message.n <= MAX_SAMPLES:
            return f"max_new_tokens is {sampling.max_new_tokens} and n is {message.n}; both must be at least 1"
        if sampling.temperature < 0 or sampling.top_k < 0 or sampling.repetition_penalty <= 0:
            return "temperature and top_k must be at least 0 and repetition_penalty above 0"
        prompts = {"token_ids": (message.token_ids, self.max_length - 1)}
        if self.family == "seq2seq":
            prompts = {
                "token_ids": (message.token_ids, self.max_length),
                "decoder_ids": (message.decoder_ids, self.max_length - 1),
            }
        errors = [self._ids_error(name, ids, longest) for name, (ids, longest) in prompts.items()]
        for name, ids in (("eos_ids", message.eos_ids), ("stop_ids", message.stop_ids)):
            if ids and not _within(ids, self.vocab_size):
                errors.append(f"{name} must lie in 0..{self.vocab_size - 1}")
        return next(filter(None, errors), None)

    def _ids_error(self, name: str, ids: Sequence[int], longest: int) -> str | None:
        if not 1 <= len(ids) <= longest:
            return f"{name} has {len(ids)} tokens, the model takes 1 to {longest}"
        return None if _within(ids, self.vocab_size) else f"{name} must lie in 0..{self.vocab_size - 1}"


def limits_of(model: Model, settings: EngineSettings, pages: int) -> Limits:
    """The limits of a model with so many pages."""
    return Limits(
        family=model.family,
        vocab_size=model.vocab_size,
        token_types=model.spec.encoder.token_types if model.spec.encoder else 0,
        max_length=longest_sequence(model, settings),
        pages=pages,
        page_size=settings.page_size,
    )


def _within(ids: Sequence[int], limit: int) -> bool:
    return min(ids) >= 0 and max(ids) < limit
