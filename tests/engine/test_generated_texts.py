"""The texts of every decoder and seq2seq model, from the engine, are those of transformers, token for token."""

from __future__ import annotations

import pytest
import torch
import transformers

from support.architectures import DECODERS, ROWS, SEQ2SEQ
from support.checkpoints import save_for_texts
from support.engine import engine_of, generate, run
from support.generation import NEW_TOKENS, PROMPTS, START, dividing, generated, varied
from tercet.server.models import load_model


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
@torch.inference_mode()
def test_greedy_texts(name, tmp_path):
    """Alone, and all in batches too small for them, which read the prompts of decoders in pieces; some end early."""
    folder = save_for_texts(tmp_path, name)
    theirs = getattr(transformers, ROWS[name].classes[0]).from_pretrained(folder).eval()
    eos = [dividing(varied(theirs))]
    wanted = [generated(theirs, prompt, eos=eos) for prompt in PROMPTS]
    ended = [text[-1] in eos for text in wanted]
    assert {True, False} == set(ended)
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32")
    start, largest = (START, 32) if ours.family == "seq2seq" else ([], 24)
    requests = [generate(i, ids, NEW_TOKENS, decoder_ids=start, eos_ids=eos) for i, ids in enumerate(PROMPTS)]
    answers = [run(engine_of(ours), request) for request in requests]
    assert [answer.tokens[key, 0] for key, answer in enumerate(answers)] == wanted
    together = run(engine_of(ours, pages=200, max_batch_tokens=largest, layout="padded"), *requests)
    assert [together.tokens[key, 0] for key in range(len(requests))] == wanted
    assert [together.reasons[key, 0] for key in range(len(requests))] == [
        "eos" if early else "length" for early in ended
    ]
