"""What languages ask of sources and targets, where "w20" is English and "w21" is German."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tercet.server.config import ModelSettings, Settings
from tercet.server.metrics import Metrics
from tercet.server.service.errors import InvalidArgumentError, unless_error
from tercet.server.service.languages import target_translation
from tercet.server.service.prompts import Prompter
from tercet.server.service.registry import Target
from tercet.server.service.sequences import Limit, Sequencer
from tercet.server.text import Languages, load_text_model
from tercet.v1.generation_pb2 import GenerateRequest
from tercet.v1.scoring_pb2 import ScoreRequest
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path

END = 40
IDS = {"en": 20, "de": 21}
BEFORE = Languages(IDS, END, default_source="en")  # M2M100, NLLB, mBART-50
BEHIND = Languages(IDS, END, default_source="en", suffix=True)  # mBART
TARGET_ALONE = Languages(IDS, END, default_source=None)  # Marian's of several targets
TEXT = TextInput(text="w5 w6")


@pytest.fixture(scope="module")
def sequencer() -> Sequencer:
    return Sequencer(Settings(models=(ModelSettings(name="m"),)), Metrics())


@pytest.fixture
def target(checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Target:
    text = replace(load_text_model(checkpoints["seq2seq"]), languages=request.param)
    model, info = (
        SimpleNamespace(name="m", max_length=6),
        SimpleNamespace(vocab_size=60, family="seq2seq", longest_read=6),
    )
    return Target(model, text, info, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "languages", "ids", "forced"),
    [
        (BEFORE, {}, [20, 5, 6, END], None),
        (BEFORE, {"target_lang": "de"}, [20, 5, 6, END], 21),
        (BEFORE, {"source_lang": "de", "target_lang": "en"}, [21, 5, 6, END], 20),
        (BEHIND, {"source_lang": "de", "target_lang": "en"}, [5, 6, END, 21], 20),
        (TARGET_ALONE, {"target_lang": "de"}, [21, 5, 6, END], None),
        (None, {}, [5, 6], None),
    ],
    indirect=["target"],
)
async def test_sources(sequencer: Sequencer, target: Target, languages: dict[str, str], ids: list[int], forced: Any):
    request = GenerateRequest(input=TEXT, **languages)
    prompt = await Prompter(sequencer, Settings(models=())).prompt(request, target)
    assert (list(prompt.tokens.token_ids), prompt.forced_bos_id) == (ids, forced)


@pytest.mark.parametrize("target", [BEFORE], indirect=True)
async def test_a_source_is_cut_and_its_language_stays(sequencer: Sequencer, target: Target):
    request = GenerateRequest(input=TextInput(text="w5 w6 w7 w8 w9"), source_lang="de", truncate=True)
    prompt = await Prompter(sequencer, Settings(models=())).prompt(request, target)
    assert list(prompt.tokens.token_ids) == [21, 5, 6, 7, 8, END]
    ids = GenerateRequest(input=TextInput(token_ids=TokenIds(values=[5])), target_lang="de")
    prompt = await Prompter(sequencer, Settings(models=())).prompt(ids, target)
    assert (list(prompt.tokens.token_ids), prompt.forced_bos_id) == ([5], 21)


@pytest.mark.parametrize(
    ("target", "request_", "field"),
    [
        (BEFORE, GenerateRequest(input=TEXT, source_lang="fr"), "source_lang"),
        (BEFORE, GenerateRequest(input=TEXT, target_lang="fr"), "target_lang"),
        (TARGET_ALONE, GenerateRequest(input=TEXT, source_lang="en"), "source_lang"),
        (None, GenerateRequest(input=TEXT, source_lang="en"), "source_lang"),
        (None, GenerateRequest(input=TEXT, target_lang="en"), "target_lang"),
        (
            BEFORE,
            GenerateRequest(input=TextInput(token_ids=TokenIds(values=[5])), source_lang="en"),
            "source_lang",
        ),
        (
            TARGET_ALONE,
            GenerateRequest(input=TextInput(token_ids=TokenIds(values=[5])), target_lang="en"),
            "target_lang",
        ),
    ],
    indirect=["target"],
)
async def test_languages_that_cannot_be_used(
    sequencer: Sequencer, target: Target, request_: GenerateRequest, field: str
):
    with pytest.raises(InvalidArgumentError) as raised:
        await Prompter(sequencer, Settings(models=())).prompt(request_, target)
    assert raised.value.field == field
    if "fr" in (request_.source_lang, request_.target_lang):
        assert "de, en" in raised.value.message


@pytest.mark.parametrize(
    ("target", "ids"),
    [(BEFORE, [21, 5, 6, END]), (BEHIND, [5, 6, END, 21]), (TARGET_ALONE, [5, 6])],
    indirect=["target"],
)
async def test_targets_to_score(sequencer: Sequencer, target: Target, ids: list[int]):
    around = target_translation(ScoreRequest(target_lang="de"), target.text)
    limit = Limit(6, truncate=False, cut_to=6)
    [sequence] = await sequencer.sequences(target, [TEXT], ["inputs[0].text"], limit, around=around)
    assert list(unless_error(sequence).token_ids) == ids


@pytest.mark.parametrize("target", [BEFORE], indirect=True)
def test_a_target_to_score_has_a_language(target: Target):
    for request in (ScoreRequest(), ScoreRequest(target_lang="fr")):
        with pytest.raises(InvalidArgumentError) as raised:
            target_translation(request, target.text)
        assert raised.value.field == "target_lang"
