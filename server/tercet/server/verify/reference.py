"""transformers' side: the class that the checkpoint names, in float32 on a CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

Ids = list[int]

AUTO_CLASSES = {"encoder": "AutoModel", "decoder": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}


class Reference:
    """A checkpoint as transformers runs it: the judge of every number."""

    def __init__(self, source: Path, family: str, *, adapter: Path | None = None) -> None:
        """`family` chooses the class where config.json names none."""
        folder, options = (source, {}) if source.is_dir() else (source.parent, {"gguf_file": source.name})
        self.model: Any = _model_class(source, family).from_pretrained(folder, dtype=torch.float32, **options)
        if adapter is not None:
            self.model.load_adapter(str(adapter))
        self.model.eval()
        self.name = type(self.model).__name__
        self._source = source

    def tokenize(self, texts: list[str]) -> list[Ids]:
        """Token ids, special tokens included. Raises what transformers raises where it can't."""
        source = self._source
        folder, options = (source, {}) if source.is_dir() else (source.parent, {"gguf_file": source.name})
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        return [tokenizer(text)["input_ids"] for text in texts]

    @torch.inference_mode()
    def features(self, ids: Ids) -> Tensor:
        """The final hidden states [tokens, hidden]; of a seq2seq model its encoder's."""
        model = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model.base_model
        return model(torch.tensor([ids])).last_hidden_state[0]

    @torch.inference_mode()
    def outputs(self, ids: Ids, decoder_ids: Ids) -> Tensor:
        """What the head makes of a text: logits, or the starts and ends of answers [tokens, 2]."""
        more = {"decoder_input_ids": torch.tensor([decoder_ids])} if decoder_ids else {}
        outputs = self.model(input_ids=torch.tensor([ids]), **more)
        if "start_logits" in outputs:
            return torch.stack([outputs.start_logits[0], outputs.end_logits[0]], dim=-1)
        return outputs.logits[0]

    @torch.inference_mode()
    def forward(self, texts: list[Ids]) -> None:
        """One padded batch, for the clock."""
        ids, mask = self._pad(texts, left=False)
        model = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        model(input_ids=ids, attention_mask=mask)

    @torch.inference_mode()
    def generate(self, texts: list[Ids], start: Ids, new_tokens: int) -> None:
        """Greedy tokens in one padded batch, for the clock."""
        ids, mask = self._pad(texts, left=not start)
        plain = transformers.GenerationConfig(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=self._padding
        )
        more = {"decoder_input_ids": torch.tensor([start] * len(texts))} if start else {}
        self.model.generate(input_ids=ids, attention_mask=mask, generation_config=plain, **more)

    @property
    def _padding(self) -> int:
        return self.model.config.get_text_config().pad_token_id or 0

    def _pad(self, texts: list[Ids], *, left: bool) -> tuple[Tensor, Tensor]:
        """Token ids and mask [texts, longest]."""
        longest = max(map(len, texts))
        gaps = [[self._padding] * (longest - len(ids)) for ids in texts]
        rows = [gap + ids if left else ids + gap for ids, gap in zip(texts, gaps, strict=True)]
        ones = [[0] * len(gap) + [1] * len(ids) for ids, gap in zip(texts, gaps, strict=True)]
        return torch.tensor(rows), torch.tensor(ones if left else [mask[::-1] for mask in ones])


def _model_class(source: Path, family: str) -> Any:
    names: list[str] = []
    if source.is_dir():
        names = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    return getattr(transformers, names[0] if names else AUTO_CLASSES[family])
