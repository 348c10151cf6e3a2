"""What becomes of sampling values on their way to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import packaged
from tercet.server import wire
from tercet.server.service.errors import InvalidArgumentError
from tercet.server.service.sampling import check_beams, resolve
from tercet.server.text import GenerationDefaults, load_text_model
from tercet.v1.generation_pb2 import EarlyStopping, SamplingParameters
from tercet.v1.types_pb2 import Strings

if TYPE_CHECKING:
    from pathlib import Path

OWN = GenerationDefaults(
    do_sample=True,
    temperature=0.5,
    top_k=7,
    top_p=0.5,
    min_p=0.25,
    typical_p=0.75,
    repetition_penalty=1.5,
    no_repeat_ngram_size=3,
    encoder_no_repeat_ngram_size=4,
    num_beams=2,
    length_penalty=0.5,
    early_stopping="never",
    min_new_tokens=1,
    bad_words=((5,), (6, 7)),
    suppressed_ids=(8,),
    first_suppressed_ids=(9,),
    forced_bos_id=10,
    forced_eos_ids=(11, 12),
)


@pytest.fixture(scope="module")
def resolved(checkpoints: dict[str, Path]):
    """Resolves values: `resolved(defaults, forced_bos_id=None, **values)`."""
    tokenizer = load_text_model(checkpoints["decoder"]).tokenizer

    def run(defaults: GenerationDefaults, forced_bos_id: int | None = None, **values: object) -> wire.Sampling:
        sampling = SamplingParameters(**{"seed": 3} | values)
        return resolve(sampling, defaults, tokenizer, wanted=5, room=9, forced_bos_id=forced_bos_id)

    return run


def test_neutral_where_nobody_says_anything(resolved):
    assert resolved(GenerationDefaults()) == wire.Sampling(max_new_tokens=5, seed=3)


def test_the_checkpoints_own(resolved):
    assert resolved(OWN) == wire.Sampling(
        max_new_tokens=5,
        min_new_tokens=1,
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        seed=3,
        typical_p=0.75,
        no_repeat_ngram_size=3,
        encoder_no_repeat_ngram_size=4,
        bad_words=[[5], [6, 7]],
        suppressed_ids=[8],
        first_suppressed_ids=[9],
        forced_bos_id=10,
        forced_eos_ids=[11, 12],
        num_beams=2,
        length_penalty=0.5,
        early_stopping="never",
    )


def test_the_request_comes_first(resolved):
    values = {
        "min_new_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
        "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "length_penalty": 1.0,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    found = resolved(
        OWN,
        early_stopping=EarlyStopping.EARLY_STOPPING_FALSE,
        bad_words=Strings(),
        forced_bos_token_id=0,
        forced_eos_token_id=1,
        logit_bias={4: -1.5},
        **values,
    )
    assert found == wire.Sampling(
        max_new_tokens=5,
        seed=3,
        encoder_no_repeat_ngram_size=4,
        suppressed_ids=[8],
        first_suppressed_ids=[9],
        early_stopping=False,
        forced_bos_id=0,
        forced_eos_ids=[1],
        logit_bias={4: -1.5},
        **values,
    )


def test_a_targets_language_comes_before_the_checkpoints_first_token_and_after_the_requests(resolved):
    assert resolved(OWN, forced_bos_id=20).forced_bos_id == 20
    assert resolved(OWN, forced_bos_id=20, forced_bos_token_id=21).forced_bos_id == 21


def test_bad_words_are_those_at_the_start_of_a_text_and_behind_a_space(resolved):
    assert resolved(OWN, bad_words=Strings(values=["w5 w6", "w7", "w7"])).bad_words == [[5, 6], [7]]
    tokenizer = load_text_model(packaged.smollm2()).tokenizer
    sampling = SamplingParameters(bad_words=Strings(values=["river"]))
    found = resolve(sampling, OWN, tokenizer, wanted=5, room=9, forced_bos_id=None).bad_words
    assert [tokenizer.decode(ids) for ids in found] == ["river", " river"]


def test_a_checkpoint_that_samples_does_not_search(resolved):
    with pytest.raises(InvalidArgumentError, match="set temperature to 0") as raised:
        check_beams(SamplingParameters(), resolved(OWN), 1, rows=4, fitting=4)
    assert raised.value.field == "sampling.num_beams"
    check_beams(SamplingParameters(), resolved(OWN, temperature=0.0), 2, rows=4, fitting=4)


@pytest.mark.parametrize(("n", "rows", "field"), [(5, 4, "n"), (1, 1, "num_beams"), (2, 1, "n")])
def test_more_rows_than_a_batch_holds(resolved, n: int, rows: int, field: str):
    with pytest.raises(InvalidArgumentError, match=f"max_rows, {rows}") as raised:
        check_beams(SamplingParameters(), resolved(OWN, temperature=0.0), n, rows=rows, fitting=99)
    assert raised.value.field == f"sampling.{field}"
