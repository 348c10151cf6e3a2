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


@pytest.mark.parametrize("name", ["marian-two", "m2m_100", "bart", "mbart", "umt5"])
@torch.inference_mode()
def test_texts_between_forced_tokens(name, tmp_path):
    """As of models that begin with the target's language, and that end where there is no more room."""
    folder = save_for_texts(tmp_path, name)
    theirs = getattr(transformers, ROWS[name].classes[0]).from_pretrained(folder).eval()
    bos, eos = 77, 321
    forced = {"forced_bos_token_id": bos, "forced_eos_token_id": eos}
    wanted = [generated(theirs, prompt, eos=[eos], **forced) for prompt in PROMPTS]
    assert all(text[0] == bos and text[-1] == eos for text in wanted)
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32")
    told = {"eos_ids": [eos], "forced_bos_id": bos, "forced_eos_ids": [eos], "decoder_ids": START}
    answers = run(engine_of(ours), *(generate(i, ids, NEW_TOKENS, **told) for i, ids in enumerate(PROMPTS)))
    assert [answers.tokens[i, 0] for i in range(len(PROMPTS))] == wanted
