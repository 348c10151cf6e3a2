"""Tercet's engine in this process, without the wire: what the service's overhead is counted from."""

from __future__ import annotations

import functools
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tercet.server.engine.loading import load_engine
from tercet.server.garbage import settle
from tercet.server.text import load_text_model
from tercet.server.wire import Embed, Embedding, EngineSettings, Generate, Rejected, Sampling, Tokens, token_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tercet.server.text import TextModel
    from tercet.server.wire import Pooling

MEMORY = {"cpu": 4 << 30, "cuda": 14 << 30}  # bytes of an engine
AT_ONCE = 2048  # texts that are submitted and not answered: others follow while the device computes
GIB = 30  # of a GPU that a row of models takes: its engine, and several copies of its peer


class InProcess:
    """One model's engine, with the service's defaults but for the prefix cache: every run computes everything, unless
    told otherwise.
    """

    def __init__(
        self,
        source: Path,
        threads: int,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        max_batch_tokens: int = 0,
        prefix_cache: bool = False,
    ) -> None:
        self._source = source
        settings = EngineSettings(
            name="benchmark", source=str(source), incarnation=0, device=device, dtype=dtype, kernels="auto",
            layout="auto", memory=MEMORY[device.partition(":")[0]], threads=threads, max_length=None, max_rows=128,
            max_batch_tokens=max_batch_tokens, prefix_cache=prefix_cache,
        )  # fmt: skip
        self._engine, self.info = load_engine(settings, lambda _: None)
        settle()
        self._requests = 0

    @functools.cached_property
    def text(self) -> TextModel:
        """The checkpoint's tokenizer and how it wants to be used."""
        return load_text_model(self._source)

    def _id(self) -> int:
        self._requests += 1
        return self._requests

    def _step(self) -> Iterator[Embedding | Tokens]:
        """What one step brings. Raises RuntimeError for a request that is rejected."""
        for output in self._engine.step().answers:
            if isinstance(output, Rejected):
                raise RuntimeError(output.message)
            if isinstance(output, Embedding | Tokens):
                yield output

    def embed_ids(self, sequences: Sequence[Sequence[int]], pooling: Pooling = "cls") -> NDArray[np.float32]:
        """Vectors of length 1 of sequences of token ids: [n, hidden]."""
        return self._vectors(
            Embed(id=self._id(), token_ids=token_ids(ids), pooling=pooling, normalize=True) for ids in sequences
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean over tokens, length 1: [n, hidden]."""
        return self._vectors(
            Embed(id=self._id(), token_ids=token_ids(encoded.ids), pooling="mean", normalize=True)
            for encoded in self.text.tokenizer.encode_batch(list(texts))
        )

    def _vectors(self, requests: Iterator[Embed]) -> NDArray[np.float32]:
        vectors: dict[int, bytes] = {}
        pending = 0
        while True:
            for request in islice(requests, AT_ONCE - pending):
                vectors[request.id] = b""
                self._engine.submit(request)
                pending += 1
            if not pending:
                break
            for output in self._step():
                if isinstance(output, Embedding):
                    vectors[output.id] = output.data
                    pending -= 1
        return np.stack([np.frombuffer(data, dtype="<f4") for data in vectors.values()])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        decoder_ids: Sequence[int] = (),
        eos_ids: Sequence[int] = (),
        beams: int = 1,
    ) -> list[list[int]]:
        """The likeliest tokens after each prompt, or of the best beam; exactly `new_tokens` where nothing ends it.

        decoder_ids: what a seq2seq decoder starts from.
        """
        generated: dict[int, list[int]] = {}
        for prompt in prompts:
            request = self._id()
            generated[request] = []
            self._engine.submit(
                Generate(
                    id=request,
                    token_ids=token_ids(prompt),
                    decoder_ids=token_ids(decoder_ids),
                    sampling=Sampling(max_new_tokens=new_tokens, num_beams=beams),
                    eos_ids=list(eos_ids),
                )
            )
        while self._engine.busy:
            for output in self._step():
                if isinstance(output, Tokens):
                    generated[output.id] += output.token_ids
        return list(generated.values())
