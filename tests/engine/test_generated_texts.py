"""The texts of every decoder and seq2seq model, from the engine, are those of transformers, token for token."""

from __future__ import annotations

from itertools import islice

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
    texts = varied(theirs)
    eos = dividing(texts)
    ended = [eos in text for text in texts]
    assert {True, False} == set(ended)
    wanted = [text[: text.index(eos) + 1] if early else text for text, early in zip(texts, ended, strict=True)]
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32")
    start, largest = (START, 32) if ours.family == "seq2seq" else ([], 24)
    requests = [generate(i, ids, NEW_TOKENS, decoder_ids=start, eos_ids=[eos]) for i, ids in enumerate(PROMPTS)]
    answers = [run(engine_of(ours), request) for request in requests]
    assert [answer.tokens[key, 0] for key, answer in enumerate(answers)] == wanted
    together = run(engine_of(ours, pages=200, max_batch_tokens=largest, layout="padded"), *requests)
    assert [together.tokens[key, 0] for key in range(len(requests))] == wanted
    assert [together.reasons[key, 0] for key in range(len(requests))] == [
        "eos" if early else "length" for early in ended
    ]


BEAMS = {"num_beams": 4}
PENALTIES = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 4}


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
@torch.inference_mode()
def test_texts_of_four_beams(name, tmp_path):
    """All prompts in one batch, with penalties too; some beams end early."""
    folder = save_for_texts(tmp_path, name)
    theirs = getattr(transformers, ROWS[name].classes[0]).from_pretrained(folder).eval()
    texts = ((prompt, generated(theirs, prompt, **BEAMS)) for prompt in PROMPTS[1:])
    prompts, texts = zip(*islice((pair for pair in texts if len(set(pair[1])) >= 8), 3), strict=True)
    assert len(texts) == 3
    plain, eos = beams_that_end(theirs, prompts, texts[0][5:])
    wanted = plain + [generated(theirs, prompt, eos=eos, **BEAMS, **PENALTIES) for prompt in prompts]
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32")
    asked = {"eos_ids": eos, "decoder_ids": START if ours.family == "seq2seq" else [], **BEAMS}
    kinds = [(prompt, options) for options in ({}, PENALTIES) for prompt in prompts]
    requests = [generate(i, ids, NEW_TOKENS, **asked, **options) for i, (ids, options) in enumerate(kinds)]
    answers = run(engine_of(ours, pages=200, max_rows=24), *requests)
    assert [answers.tokens[i, 0] for i in range(len(requests))] == wanted


def beams_that_end(model, prompts, candidates):
    """The best beams where an end among the candidates ends some of them, not all, and that end."""
    for eos in candidates:
        texts = [generated(model, prompt, eos=[eos], **BEAMS) for prompt in prompts]
        if {True, False} == {text[-1] == eos for text in texts}:
            return texts, [eos]
    raise AssertionError("every beam ends, or none does")


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
