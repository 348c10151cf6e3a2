"""The other contestants: transformers and CTranslate2, used as their own documents say."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BATCH = 32


def _sorted(embed: Callable[[list[str]], NDArray[np.float32]], texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeds texts by length, longest first as sentence-transformers does, and puts the vectors back in order."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    vectors = embed([texts[index] for index in order])
    restored = np.empty_like(vectors)
    restored[order] = vectors
    return restored


class TransformersEmbedder:
    """A sentence encoder in float32 with SDPA: padded batches of 32, mean over tokens, length 1."""

    def __init__(self, source: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self._model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()

    @torch.inference_mode()
    def in_order(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Batches as the texts arrive. [n, hidden]"""
        vectors: list[torch.Tensor] = []
        for first in range(0, len(texts), BATCH):
            inputs = self.tokenizer(
                list(texts[first : first + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            hidden = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            vectors.append(functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(vectors).numpy()

    def by_length(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Batches of texts of like lengths. [n, hidden]"""
        return _sorted(self.in_order, texts)


class CTranslate2Embedder:
    """The same encoder converted by CTranslate2's own converter, in float32, batches sorted by length."""

    def __init__(self, source: Path, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        self._tokenizer = AutoTokenizer.from_pretrained(source)
        with tempfile.TemporaryDirectory() as folder:
            converted = TransformersConverter(str(source)).convert(f"{folder}/model")
            self._encoder: Any = ctranslate2.Encoder(
                converted, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
            )

    def _in_order(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: list[NDArray[np.float32]] = []
        for first in range(0, len(texts), BATCH):
            token_ids = self._tokenizer(list(texts[first : first + BATCH]), truncation=True)["input_ids"]
            hidden = np.array(self._encoder.forward_batch(token_ids).last_hidden_state)  # [B, S, hidden]
            lengths = np.array([len(ids) for ids in token_ids])
            mask = np.arange(hidden.shape[1]) < lengths[:, None]
            mean = np.einsum("bsd,bs->bd", hidden, mask.astype(np.float32)) / lengths[:, None]
            vectors.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
        return np.concatenate(vectors)

    def by_length(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, hidden]"""
        return _sorted(self._in_order, texts)


class TransformersDecoder:
    """A decoder from a GGUF file, computed in float32."""

    def __init__(self, source: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        self._model = model.eval()

    def rounded(self) -> TransformersDecoder:
        """The same weights in bfloat16, computed in that."""
        other = copy.copy(self)
        other._model = copy.deepcopy(self._model).to(torch.bfloat16)
        return other

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Exactly `new_tokens` greedy tokens for each prompt, all in one left-padded batch."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        generated = self._model.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=new_tokens,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return generated[:, longest:].tolist()

    @torch.inference_mode()
    def behind(self, prompt: Sequence[int], generated: Sequence[int]) -> list[float]:
        """By how much the logit of each generated token is behind the largest, given the tokens before it."""
        ids = torch.tensor([[*prompt, *generated[:-1]]])
        logits = self._model(input_ids=ids).logits[0, len(prompt) - 1 :]
        chosen = logits.gather(1, torch.tensor(generated)[:, None])[:, 0]
        return (logits.max(dim=-1).values - chosen).tolist()
