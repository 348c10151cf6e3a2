"""A model: an architecture with one checkpoint loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tercet.server.models.attention import FlatKeys, PagedKeys
from tercet.server.models.batch import KVCache

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.server.models.batch import DecoderBatch, EncoderBatch, Source
    from tercet.server.models.dense import Projection
    from tercet.server.models.heads import Head
    from tercet.server.models.spec import Family, TransformerSpec
    from tercet.server.models.transformer import Stack, Transformer


class Model:
    """What an engine runs. No parameter wants a gradient; run it under `torch.inference_mode()`."""

    def __init__(
        self,
        architecture: str,
        spec: TransformerSpec,
        transformer: Transformer,
        projection: Projection,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        quantization_error: float | None = None,
    ) -> None:
        """The modules have their weights; `max_length` is in tokens, of seq2seq models of a source or a target.

        `quantization_error`: ‖quantized - weights‖ / ‖weights‖ where layers multiply by quantized weights.
        """
        self.architecture = architecture
        self.spec = spec
        self.transformer = transformer
        self.projection = projection
        self.device = device
        self.dtype = dtype
        self.max_length = max_length
        self.quantization_error = quantization_error
        weights = [*transformer.parameters(), *projection.parameters()]
        self.parameters: int = sum(tensor.numel() for tensor in weights)
        self.weight_bytes: int = sum(tensor.nbytes for tensor in (*weights, *transformer.buffers()))

    @property
    def family(self) -> Family:
        """Encoder, decoder or seq2seq."""
        return self.spec.family

    @property
    def vocab_size(self) -> int:
        """Tokens there are embeddings for."""
        return self.spec.vocab_size

    @property
    def target_vocab_size(self) -> int:
        """Tokens that the decoder has embeddings for."""
        return self.spec.target_vocab_size or self.spec.vocab_size

    @property
    def hidden_size(self) -> int:
        """Of the final hidden states."""
        return self.spec.hidden_size

    @property
    def embedding_size(self) -> int:
        """Of the vectors that sequences are embedded as."""
        return self.projection.width

    def cache_bytes_per_page(self, page_size: int) -> int:
        """Bytes of keys and values of all layers in one page of `page_size` tokens."""
        spec = self._decoder.spec
        return 2 * spec.layers * page_size * spec.kv_heads * spec.head_dim * self.dtype.itemsize

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        """Pages for this model, of any content: memory that no sequence needs is never touched."""
        spec = self._decoder.spec
        shape = (spec.layers, pages, page_size, spec.kv_heads, spec.head_dim)
        k, v = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KVCache(k, v, page_size)

    def encode(self, batch: EncoderBatch) -> Tensor:
        """The final hidden states [T, hidden] of an encoder's batch, the last norm applied."""
        if self.transformer.encoder is None:
            raise TypeError(f"a {self.family} has nothing to encode with")
        return self.transformer.encoder(batch.token_ids, batch.positions, batch.type_ids, FlatKeys(batch))

    def write_cross(self, encoded: Tensor, slots: Tensor, cache: KVCache) -> None:
        """Writes what every layer of a seq2seq decoder attends to of encoded sources, once per source.

        `encoded` [T, hidden] is of `encode`, `slots` int32 [T] are page * page_size + offset, or -1 for padding.
        """
        self._decoder.write_source(encoded, slots, cache)

    def decode(self, batch: DecoderBatch, cache: KVCache) -> Tensor:
        """The final hidden states [T, hidden] of new tokens, which are written into the cache."""
        return self._decoder(batch.token_ids, batch.positions, None, PagedKeys(batch, cache))

    def read(self, batch: EncoderBatch, source: Source | None = None) -> Tensor:
        """The final hidden states [T, hidden] of whole sequences, read by the decoder without a cache.

        `source`: what a seq2seq model's decoder attends to.
        """
        return self._decoder(batch.token_ids, batch.positions, batch.type_ids, FlatKeys(batch, source))

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [N, hidden] -> float32 [N, outputs of the head]."""
        return self._head(hidden).float()

    def head_topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` greatest logits of each row, falling, and their ids: float32 and int32 [N, k]."""
        return self._head.topk(hidden, k)

    def topk_refusals(self, rows: int, k: int) -> list[str]:
        """Why `head_topk` is not the way to the `k` greatest logits of so many rows; empty where it is."""
        return self._head.topk_refusals(rows, k)

    @property
    def projects(self) -> bool:
        """Whether anything becomes of pooled vectors."""
        return len(self.projection.maps) > 0

    def project(self, vectors: Tensor) -> Tensor:
        """Pooled hidden states, float32 [N, hidden], as sentence-transformers' Dense modules map them."""
        return self.projection(vectors)

    @property
    def _head(self) -> Head:
        if self.transformer.head is None:
            raise TypeError(f"{self.architecture} has no head")
        return self.transformer.head

    @property
    def _decoder(self) -> Stack:
        if self.transformer.decoder is None:
            raise TypeError(f"an {self.family} has no decoder")
        return self.transformer.decoder
