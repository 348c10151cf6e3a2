"""The checkpoints that packages ship, against transformers reading the same files."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from support.forward import Decoding, encode, relative_error
from support.packaged import minilm, smollm2
from tercet.server.models import load_model

CPU = torch.device("cpu")
TEXTS = (
    "A sentence.",
    "Transformers read whole texts at once; this one is a little longer, so that the batch is ragged.",
    "naïve café, 東京, 12345!",
)


def test_minilm_gives_the_hidden_states_of_transformers() -> None:
    model = load_model(minilm(), device=CPU)
    reference = BertModel.from_pretrained(minilm()).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    for padded in (False, True):
        for hidden, text in zip(encode(model, ids, padded=padded), ids, strict=True):
            assert relative_error(hidden, reference(torch.tensor([text])).last_hidden_state[0]) <= 1e-4


def test_smollm2_gives_the_logits_of_transformers() -> None:
    file = smollm2()
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    prompts = [
        [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767],
        list(range(1000, 1040)),
        [1, 4093, 198, 2, 198],
    ]
    expected = [reference(torch.tensor([prompt])).logits[0] for prompt in prompts]
    del reference
    model = load_model(file, device=CPU, max_length=64)
    for hidden, logits in zip(Decoding(model, len(prompts)).read(prompts), expected, strict=True):
        assert (model.logits(hidden) - logits).abs().max() <= 1e-3
