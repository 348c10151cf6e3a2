"""TextService: text to tokens and back; no engine is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.service.errors import InvalidArgumentError, to_status
from tercet.server.service.sequences import Sequencer, check_ids, id_count
from tercet.v1.text_pb2 import (
    DetokenizeRequest,
    DetokenizeResponse,
    Tokenized,
    TokenizeItem,
    TokenizeRequest,
    TokenizeResponse,
)

if TYPE_CHECKING:
    from tercet.server.service.registry import Registry
    from tercet.server.service.rpc import Call
    from tercet.server.text import Encoded


class TextServicer:
    """The methods of tercet.v1.TextService."""

    def __init__(self, registry: Registry, sequencer: Sequencer) -> None:
        self._registry = registry
        self._sequencer = sequencer

    async def tokenize(self, request: TokenizeRequest, call: Call) -> TokenizeResponse:
        """Text to token ids."""
        model = self._registry.get(request.model)
        call.model = model.name
        tokenizer = model.require_text().tokenizer
        self._sequencer.check_count("texts", len(request.texts))
        self._sequencer.check_chars("texts", sum(map(len, request.texts)))
        items = [TokenizeItem() for _ in request.texts]
        texts: dict[int, str] = {}
        for i, text in enumerate(request.texts):
            try:
                self._sequencer.check_text(f"texts[{i}]", text)
                texts[i] = text
            except InvalidArgumentError as error:
                items[i].error.CopyFrom(to_status(error))
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        encoded = await self._sequencer.encode(model, tokenizer, list(texts.values()), special=special, spans=True)
        for i, one in zip(texts, encoded, strict=True):
            items[i].tokenized.CopyFrom(_tokenized(one))
        return TokenizeResponse(model=model.name, items=items)

    async def detokenize(self, request: DetokenizeRequest, call: Call) -> DetokenizeResponse:
        """Token ids to text."""
        model = self._registry.get(request.model)
        call.model = model.name
        tokenizer = model.require_text().tokenizer
        self._sequencer.check_count("sequences", len(request.sequences))
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        size = tokenizer.vocab_size if model.engine.info is None else model.engine.info.vocab_size

        def decode() -> DetokenizeResponse:
            response = DetokenizeResponse(model=model.name)
            for i, sequence in enumerate(request.sequences):
                item = response.items.add()
                try:
                    ids = check_ids(f"sequences[{i}]", sequence, size) if id_count(sequence) else []
                    item.text = tokenizer.decode(list(ids), skip)
                except InvalidArgumentError as error:
                    item.error.CopyFrom(to_status(error))
            return response

        return await self._sequencer.threads.run(sum(id_count(s) for s in request.sequences), decode)


def _tokenized(encoded: Encoded) -> Tokenized:
    return Tokenized(token_ids=encoded.ids, tokens=encoded.tokens, starts=encoded.starts, ends=encoded.ends)
