"""The engine around real (tiny) checkpoints against transformers, alone and among others."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from support.checkpoints import VOCAB_SIZE, tiny_bert, tiny_llama, tiny_t5
from support.engine import engine_of, generate, run
from support.reference import renamed
from tercet.server.models import load_model
from tercet.server.wire import Embed

EOS = [7, 11]
START = [0]
NEW_TOKENS = 12
# With 23 pages, sequences are preempted; steps are launched ahead in every other case.
LAYOUTS = [("packed", 200, False), ("padded", 200, True), ("packed", 23, True), ("padded", 23, False)]
PROCESSED = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "logit_bias": {50: 3.0, 60: -2.0},
    "bad_words": [[9], [20, 21]],
    "min_new_tokens": 4,
    "suppressed_ids": [100, 101],
    "forced_eos_ids": [11],
}
MAKERS = {"decoder": (tiny_llama, AutoModelForCausalLM), "seq2seq": (tiny_t5, AutoModelForSeq2SeqLM)}


def random_ids(rng, longest):
    return [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randint(1, longest))]


PROMPTS = [random_ids(random.Random(key), 40) for key in range(6)]


@pytest.fixture(scope="module", params=MAKERS)
def generative(request, tmp_path_factory):
    """Family, our model and transformers' of one checkpoint."""
    make, auto = MAKERS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param))
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32", max_length=128)
    return request.param, ours, auto.from_pretrained(folder, dtype=torch.float32).eval()


def ask(family, key, ids, **options):
    start = START if family == "seq2seq" else []
    options = {"eos_ids": EOS, "new_tokens": NEW_TOKENS} | options
    return generate(key, ids, options.pop("new_tokens"), decoder_ids=start, **options)


def reference(family, model, ids, eos=EOS, **options):
    """What transformers generates after `ids`."""
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=NEW_TOKENS,
        do_sample=False, eos_token_id=eos or None, pad_token_id=0, **renamed(**options),
    )  # fmt: skip
    return output[0, len(START) if family == "seq2seq" else len(ids) :].tolist()


def others(family, count=6):
    """Random requests that share the batches."""
    rng = random.Random(99)
    kinds = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "typical_p": 0.5}, PROCESSED]
    return [
        ask(family, 1000 + key, random_ids(rng, 50), seed=key, n=rng.choice([1, 2]), **rng.choice(kinds))
        for key in range(count)
    ]


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}, {"min_new_tokens": 9}, PROCESSED], ids=str)
def test_greedy_tokens_are_those_of_transformers(generative, options):
    family, ours, theirs = generative
    wanted = [reference(family, theirs, ids, **options) for ids in PROMPTS]
    alone = [run(engine_of(ours), ask(family, 0, ids, **options)).tokens[0, 0] for ids in PROMPTS]
    assert alone == wanted
    assert len({tuple(tokens) for tokens in wanted}) == len(PROMPTS)
    for layout, pages, ahead in LAYOUTS:
        mine = [ask(family, key, ids, **options) for key, ids in enumerate(PROMPTS)]
        mixed = [message for pair in zip(mine, others(family, 6), strict=True) for message in pair]
        engine = engine_of(ours, layout=layout, pages=pages, max_batch_tokens=64, max_rows=7, ahead=ahead)
        answers = run(engine, *mixed)
        assert [answers.tokens[key, 0] for key in range(len(PROMPTS))] == wanted, (layout, pages)
        assert (answers.steps[-1].preemptions > 0) == (pages == 23)
        assert answers.steps[-1].pages_used == 0


@pytest.mark.parametrize("options", [{}, {"forced_bos_id": 77, "encoder_no_repeat_ngram_size": 1}], ids=str)
def test_log_probabilities_are_those_of_transformers(generative, options):
    """Of generated tokens, by the logits that penalties and the like have not touched yet."""
    family, ours, theirs = generative
    if family == "decoder":
        options = {"no_repeat_ngram_size": 1} if options else {}
    told = {"logprobs": True, "top_logprobs": 3, "eos_ids": [], "new_tokens": 6}
    asked = [ask(family, key, ids, **options, **(told if key % 2 else {})) for key, ids in enumerate(PROMPTS)]
    answers = run(engine_of(ours), *asked)
    for key, ids in enumerate(PROMPTS):
        if key % 2 == 0:
            assert (key, 0) not in answers.logprobs
            continue
        tokens, found = answers.tokens[key, 0], answers.logprobs[key, 0]
        text = START + tokens if family == "seq2seq" else ids + tokens
        inputs = {"input_ids": torch.tensor([text])}
        if family == "seq2seq":
            inputs = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([text])}
        with torch.inference_mode():
            wanted = theirs(**inputs).logits[0, -len(tokens) - 1 : -1].log_softmax(-1).numpy()
        assert [token.top_ids for token in found] == (-wanted).argsort(axis=1)[:, :3].tolist()
        for token, row, chosen in zip(found, wanted, tokens, strict=True):
            np.testing.assert_allclose([token.logprob, *token.top_logprobs], row[[chosen, *token.top_ids]], atol=1e-4)


def test_ends_and_their_reasons(generative):
    family, ours, theirs = generative
    ids = PROMPTS[0]
    wanted = reference(family, theirs, ids, eos=[])
    engine = engine_of(ours)
    cut = wanted[: wanted.index(wanted[4]) + 1]
    for reason, options, tokens in (
        ("eos", {"eos_ids": [wanted[4]]}, cut),
        ("stop", {"eos_ids": [], "stop_ids": [wanted[4]]}, cut),
        ("length", {"eos_ids": [], "new_tokens": 3}, wanted[:3]),
    ):
        answers = run(engine, ask(family, 1, ids, **options))
        assert (answers.reasons[1, 0], answers.tokens[1, 0]) == (reason, tokens)


DRAWN = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
TYPICAL = {"temperature": 1.2, "typical_p": 0.9, "no_repeat_ngram_size": 2, "presence_penalty": 0.5, "logprobs": True}


@pytest.mark.parametrize("options", [DRAWN, TYPICAL], ids=["filters", "typical"])
@pytest.mark.parametrize(("layout", "pages", "ahead"), LAYOUTS)
def test_samples_depend_on_nothing_but_seed_and_sample(generative, layout, pages, ahead, options):
    family, ours, _ = generative
    drawn = {"seed": 2**64 - 3, "n": 3, "eos_ids": [], **options}
    mine = ask(family, 0, PROMPTS[1], **drawn)
    alone = run(engine_of(ours), mine).tokens
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    rest = others(family)
    engine = engine_of(ours, layout=layout, pages=pages, max_batch_tokens=64, max_rows=7, ahead=ahead)
    answers = run(engine, *rest[:3], mine, *rest[3:])
    assert {key: answers.tokens[key] for key in alone} == alone


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_embeddings_are_those_of_transformers(tmp_path, layout):
    folder = tiny_bert(tmp_path)
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32")
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rng = random.Random(4)
    kinds = ["mean", "cls", "last", "max"]
    messages = []
    for key in range(24):
        ids = random_ids(rng, 90)
        types = [int(place > len(ids) // 2) for place in range(len(ids))] if key % 3 == 0 else None
        messages.append(Embed(id=key, token_ids=ids, type_ids=types, pooling=kinds[key % 4], normalize=key % 2 == 0))
    answers = run(engine_of(ours, layout=layout, max_batch_tokens=256, max_rows=8), *messages)
    assert all(stats.host_to_device_copies == 1 for stats in answers.stats)
    for message in messages:
        with torch.inference_mode():
            types = None if message.type_ids is None else torch.tensor([message.type_ids])
            (hidden,) = theirs(torch.tensor([message.token_ids]), token_type_ids=types).last_hidden_state
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[message.pooling]
        wanted = torch.nn.functional.normalize(vector, dim=0) if message.normalize else vector
        np.testing.assert_allclose(np.frombuffer(answers.vectors[message.id], "<f4"), wanted, atol=2e-5)
