"""Tercet's engine in this process, without the wire: what the service's overhead is counted from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tercet.server.engine.loading import load_engine
from tercet.server.text import load_text_model
from tercet.server.wire import Embed, Embedding, EngineSettings, Generate, Rejected, Sampling, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEMORY = 4 << 30  # bytes


class InProcess:
    """One model's tokenizer and engine, with the service's defaults."""

    def __init__(self, source: Path, threads: int) -> None:
        self.text = load_text_model(source)
        settings = EngineSettings(
            name="benchmark", source=str(source), incarnation=0, device="cpu", dtype="auto", kernels="auto",
            layout="auto", memory=MEMORY, threads=threads, max_length=None, max_rows=128, max_batch_tokens=8192,
        )  # fmt: skip
        self._engine, self.info = load_engine(settings, lambda _: None)
        self._requests = 0

    def embed_ids(self, sequences: Sequence[list[int]]) -> int:
        """Reads sequences of token ids and takes the first token's vectors; gives how many there are."""
        for token_ids in sequences:
            self._engine.submit(Embed(id=self._id(), token_ids=token_ids, pooling="cls", normalize=True))
        answered = 0
        while self._engine.busy:
            answered += sum(isinstance(output, Embedding) for output in self._engine.step().outputs)
        return answered

    def _id(self) -> int:
        self._requests += 1
        return self._requests

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean over tokens, length 1: [n, hidden]."""
        vectors: dict[int, bytes] = {}
        for encoded in self.text.tokenizer.encode_batch(list(texts)):
            request = self._id()
            vectors[request] = b""
            self._engine.submit(
                Embed(id=request, token_ids=encoded.ids, type_ids=encoded.type_ids, pooling="mean", normalize=True)
            )
        while self._engine.busy:
            for output in self._engine.step().outputs:
                if isinstance(output, Embedding):
                    vectors[output.id] = output.data
                elif isinstance(output, Rejected):
                    raise RuntimeError(output.message)
        return np.stack([np.frombuffer(data, dtype="<f4") for data in vectors.values()])

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Greedy tokens of each prompt; a decoder makes exactly `new_tokens`, seq2seq stops at its end of sequence."""
        defaults = self.text.generation
        seq2seq = self.info.family == "seq2seq"
        generated: dict[int, list[int]] = {}
        for prompt in prompts:
            request = self._id()
            generated[request] = []
            self._engine.submit(
                Generate(
                    id=request,
                    token_ids=list(prompt),
                    decoder_ids=list(defaults.decoder_start_ids) if seq2seq else [],
                    sampling=Sampling(max_new_tokens=new_tokens),
                    eos_ids=list(defaults.eos_ids) if seq2seq else [],
                )
            )
        while self._engine.busy:
            for output in self._engine.step().outputs:
                if isinstance(output, Tokens):
                    generated[output.id] += output.token_ids
                elif isinstance(output, Rejected):
                    raise RuntimeError(output.message)
        return list(generated.values())
