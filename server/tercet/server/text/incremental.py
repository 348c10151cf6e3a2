"""Token ids to text as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one stream of token ids: the pieces joined are `tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens

    def push(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def finish(self) -> str:
        raise NotImplementedError
