"""What the languages of a request ask of its texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.service.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tercet.server.text import TextModel
    from tercet.v1.generation_pb2 import GenerateRequest
    from tercet.v1.scoring_pb2 import ScoreRequest


def translation(request: GenerateRequest | ScoreRequest, text: TextModel):
    """Raises InvalidArgumentError."""
    for name in ("source_lang", "target_lang"):
        if request.HasField(name):
            raise InvalidArgumentError(name, "must not be set: the model is told no languages")
