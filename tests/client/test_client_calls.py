"""What the calls send and return, against a fake service."""

import inspect
from dataclasses import FrozenInstanceError, fields, is_dataclass

import numpy as np
import pytest

import tercet.client
from support.fake_embedding import ids_of, vector
from tercet.client import (
    AsyncClient,
    Client,
    InvalidArgument,
    NotFound,
    Sampling,
    TercetError,
    TokenLogprob,
    Usage,
    results,
)
from tercet.v1.generation_pb2 import (
    EARLY_STOPPING_FALSE,
    EARLY_STOPPING_NEVER,
    EARLY_STOPPING_TRUE,
    SamplingParameters,
)
from tercet.v1.types_pb2 import TextInput


def test_models(ask):
    count, echo = ask("models")
    assert (echo.name, echo.family, echo.architecture, echo.state) == ("echo", "decoder", "llama", "ready")
    assert echo.tasks == ["generate", "chat"]
    assert (echo.max_length, echo.vocab_size, echo.parameters) == (64, 0x110000, 7)
    assert echo.embedding_size is None
    assert (count.embedding_size, count.state, count.family) == (3, "loading", "seq2seq")
    assert (count.labels, count.mask_token, count.prompts) == (["bad", "good"], "[MASK]", ["query"])
    assert (echo.labels, echo.mask_token, echo.prompts) == ([], None, [])
    assert (echo.generation_tasks, echo.languages) == (["summarization"], ["de", "en"])
    assert count.tasks == ["embed", "unspecified"]  # the second is one that only a newer server knows


def test_embed_one_text(ask):
    result = ask("embed", "abc")
    assert result.dtype == np.float32
    assert result.shape == (3,)
    assert result.flags.writeable
    np.testing.assert_array_equal(result, vector(TextInput(text="abc")))


@pytest.mark.parametrize("ids", [[3, 4], (3, 4), np.array([3, 4])], ids=["list", "tuple", "array"])
def test_embed_token_ids_of_one_sequence(ask, fake, ids):
    np.testing.assert_array_equal(ask("embed", ids), [2, 7, 3])
    (_, request, *_), *_ = fake.attempts("Embed")
    assert (ids_of(request.token_batch), list(request.token_batch.lengths)) == ([3, 4], [2])
    assert not request.inputs


@pytest.mark.parametrize("many", [[[3, 4], [5, 6]], np.array([[3, 4], [5, 6]]), ([3, 4], [5, 6])])
def test_embed_token_ids_of_many_sequences(ask, many):
    np.testing.assert_array_equal(ask("embed", many), [[2, 7, 3], [2, 11, 5]])


def test_embed_list_may_mix_text_and_ids(ask):
    np.testing.assert_array_equal(ask("embed", ["a", [5, 6]]), [[1, 97, 97], [2, 11, 5]])


def test_embed_list_of_one_stays_a_list(ask):
    assert ask("embed", ["a"]).shape == (1, 3)


def test_embed_takes_any_iterable(ask):
    assert ask("embed", (text for text in ("a", "b"))).shape == (2, 3)


def test_embed_sends_only_what_is_set(ask, fake):
    ask("embed", "a")
    ask("embed", "a", model="count", pooling="cls", normalize=False, truncate=True, dimensions=2, prompt_name="")
    (_, plain, *_), (_, full, *_) = fake.attempts("Embed")
    assert [field.name for field, _ in plain.ListFields()] == ["inputs"]
    assert full.model == "count"
    assert full.pooling == 2
    assert full.HasField("normalize")
    assert not full.normalize
    assert full.truncate
    assert full.dimensions == 2
    assert full.HasField("prompt_name")


def test_embed_without_pooling_is_a_vector_a_token(ask):
    one = ask("embed", "ab c", pooling="none")
    np.testing.assert_array_equal(one, [[2, 195, 97], [1, 99, 99]])
    first, second = ask("embed", ["ab c", "d"], pooling="none")
    np.testing.assert_array_equal(first, one)
    assert second.shape == (1, 3)


def test_generate(ask, fake):
    generation = ask("generate", "Once", model="echo", n=2, max_new_tokens=3)
    assert generation.text == "Once#0"
    assert generation.token_ids == [0, 1, 2]
    assert generation.finish_reason == "length"
    assert [output.text for output in generation.outputs] == ["Once#0", "Once#1"]
    assert generation.usage == Usage(prompt_tokens=5, generated_tokens=6, cached_tokens=4)
    assert (generation.model, generation.seed, generation.truncated) == ("echo", 9, False)


def test_generate_from_token_ids(ask):
    assert ask("generate", [5, 6, 7]).text == "5 6 7#0"


SAMPLING = {
    "max_new_tokens": 3,
    "min_new_tokens": 1,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.5,
    "seed": 2**64 - 1,
    "n": 2,
    "stop": ["a", "b"],
    "stop_token_ids": [],
    "ignore_eos": False,
    "skip_special_tokens": False,
    "typical_p": 0.5,
    "presence_penalty": 0.0,
    "frequency_penalty": -1.5,
    "logit_bias": {7: -100.0, 9: 0.0},
    "no_repeat_ngram_size": 0,
    "bad_words": ["c"],
    "num_beams": 4,
    "length_penalty": 0.0,
    "early_stopping": "never",
    "logprobs": False,
    "top_logprobs": 0,
    "echo": False,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 0,
}


def test_sampling_values_travel_even_where_they_are_zero_or_empty(ask, fake):
    ask("generate", "a", **SAMPLING)
    sampling = fake.attempts("Generate")[0][1].sampling
    assert {field.name for field, _ in sampling.ListFields()} | {"logit_bias"} == set(SAMPLING)
    for name, value in SAMPLING.items():
        sent = getattr(sampling, name)
        lists = name in {"stop", "stop_token_ids", "bad_words"}
        assert (list(sent.values) if lists else sent) == (EARLY_STOPPING_NEVER if value == "never" else value), name


@pytest.mark.parametrize(("value", "sent"), [(True, EARLY_STOPPING_TRUE), (False, EARLY_STOPPING_FALSE)])
def test_early_stopping_is_a_bool_or_never(ask, fake, value, sent):
    ask("generate", "a", num_beams=2, early_stopping=value)
    assert fake.attempts("Generate")[0][1].sampling.early_stopping == sent


def test_unset_and_none_sampling_values_do_not_travel(ask, fake):
    ask("generate", "a", temperature=None, stop=None)
    assert fake.attempts("Generate")[0][1].sampling == SamplingParameters()


def test_one_stop_string_needs_no_list(ask, fake):
    ask("generate", "a", stop="end")
    assert list(fake.attempts("Generate")[0][1].sampling.stop.values) == ["end"]


def test_sampling_names_every_field_of_the_protocol():
    assert set(Sampling.__annotations__) == set(SamplingParameters.DESCRIPTOR.fields_by_name) == set(SAMPLING)


def test_logprobs_scores_and_the_echoed_prompt_come_back(ask):
    generation = ask("generate", "a", logprobs=True, top_logprobs=1, echo=True)
    assert generation.outputs[0].logprobs == [TokenLogprob(-1.5, [(4, -0.25)])] * 3
    assert generation.prompt_token_ids == [8, 9]
    assert generation.prompt_logprobs == [TokenLogprob(-1.5, [(4, -0.25)])]
    assert generation.outputs[0].score is None
    assert [output.score for output in ask("generate", "a", num_beams=2, n=2).outputs] == [-0.5, -1.5]
    assert [len(piece.logprobs) for piece in ask.pieces("a b", logprobs=True)] == [1, 1]


@pytest.mark.parametrize("method", ["generate", "pieces"])
def test_tasks_and_languages_travel(ask, fake, method):
    arguments = {"task": "summarization", "source_lang": "en", "target_lang": "de"}
    ask("generate", "a", **arguments) if method == "generate" else ask.pieces("a", **arguments)
    ((_, request, *_),) = fake.attempts("Generate" if method == "generate" else "GenerateStream")
    assert (request.task, request.source_lang, request.target_lang) == ("summarization", "en", "de")


@pytest.mark.parametrize("method", ["generate", "chat", "pieces"])
def test_a_cache_salt_travels(ask, fake, method):
    prompt = [{"role": "user", "content": "a"}] if method == "chat" else "a"
    ask.pieces(prompt, cache_salt="ours") if method == "pieces" else ask(method, prompt, cache_salt="ours")
    ((_, request, *_),) = fake.attempts("GenerateStream" if method == "pieces" else "Generate")
    assert request.cache_salt == "ours"


def test_chat(ask):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé?"}]
    assert ask("chat", messages).text == "system:be brief user:hé?#0"


def test_stream_of_a_prompt(ask):
    pieces = ask.pieces("one two three", model="echo")
    assert "".join(piece.text for piece in pieces) == "one two three"
    assert [piece.token_ids for piece in pieces] == [[0], [1], [2]]
    assert [piece.finish_reason for piece in pieces] == [None, None, "length"]
    assert [piece.usage is not None for piece in pieces] == [False, False, True]
    assert {(piece.index, piece.seed, piece.truncated) for piece in pieces} == {(0, 9, False)}


def test_stream_of_messages(ask):
    pieces = ask.pieces([{"role": "user", "content": "x y"}])
    assert "".join(piece.text for piece in pieces) == "user:x y"


def test_stream_of_token_ids(ask):
    assert "".join(piece.text for piece in ask.pieces([7, 8])) == "7 8"


@pytest.mark.parametrize("text", ["", "naïve 🤖 \x00 \u200d नमस्ते", "a\nb\r\n"])
def test_unicode_goes_round(ask, text):
    tokenized = ask("tokenize", text)
    assert "".join(tokenized.tokens) == text
    assert [text[start:end] for start, end in tokenized.offsets] == tokenized.tokens
    assert ask("detokenize", [*tokenized.token_ids, 33]) == text + "!"
    assert ask("generate", text).text == text + "#0"


def test_detokenize_many(ask):
    assert ask("detokenize", [[104, 105], [33]]) == ["hi", "!"]
    assert ask("detokenize", [[]]) == [""]


def test_no_tokens_are_one_sequence(ask):
    assert ask("detokenize", []) == ""


def test_health(ask):
    assert ask("health") == "SERVING"
    assert ask("health", "echo") == "SERVING"
    assert ask("health", "broken") == "NOT_SERVING"
    with pytest.raises(NotFound):
        ask("health", "nobody")


@pytest.mark.parametrize(
    ("method", "argument", "options", "field"),
    [
        ("generate", "a", {"max_new_tokens": -1}, "sampling.max_new_tokens"),
        ("generate", "a", {"seed": 2**64}, "sampling.seed"),
        ("generate", [2**32], {}, "input"),
        ("generate", "lone \ud800", {}, "input"),
        ("generate", "a", {"stop": ["\udfff"]}, "sampling.stop"),
        ("generate", "a", {"logit_bias": {-1: 1.0}}, "sampling.logit_bias"),
        ("generate", "a", {"early_stopping": "soon"}, "sampling.early_stopping"),
        ("embed", "a", {"dimensions": -1}, "dimensions"),
        ("chat", [{"role": "user", "content": "a"}, {"role": "user", "text": "a"}], {}, "chat.messages[1]"),
        ("embed", ["a", "\ud800"], {}, "inputs[1]"),
        ("embed", ["a", [-1]], {}, "inputs[1]"),
        ("embed", [], {}, "inputs"),
        ("embed", "a", {"pooling": "middle"}, "pooling"),
        ("tokenize", [], {}, "texts"),
        ("detokenize", [[1], [-2]], {}, "sequences[1]"),
    ],
)
def test_values_out_of_range_are_refused_before_they_are_sent(ask, fake, method, argument, options, field):
    with pytest.raises(InvalidArgument) as caught:
        ask(method, argument, **options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert fake.requests == []


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_ids_out_of_range_are_told_their_range(ask, ids):
    with pytest.raises(InvalidArgument, match=r"input: token ids must lie in 0\.\.4294967295"):
        ask("generate", ids)


@pytest.mark.parametrize(
    ("method", "argument", "options", "named"),
    [
        ("generate", "a", {"max_tokens": 5}, "max_tokens"),
        ("generate", "a", {"top_k": "many"}, "top_k"),
        ("generate", b"bytes", {}, "input"),
        ("generate", bytearray(b"bytes"), {}, "input"),
        ("generate", [{"role": "user", "content": "a"}], {}, "input"),
        ("chat", "a", {}, "messages"),
        ("embed", b"bytes", {}, "inputs"),
        ("embed", bytearray(b"bytes"), {}, "inputs"),
        ("embed", ["a", b"bytes"], {}, "inputs"),
        ("embed", ["a", [1.5]], {}, "inputs"),
        ("tokenize", ["a", 3], {}, "texts"),
        ("detokenize", "a", {}, "sequences"),
    ],
)
def test_wrong_types_are_refused_before_they_are_sent(ask, fake, method, argument, options, named):
    with pytest.raises(TypeError, match=named):
        ask(method, argument, **options)
    assert fake.requests == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeouts_must_be_positive(ask, timeout):
    with pytest.raises(ValueError, match="timeout"):
        ask("models", timeout=timeout)


def test_errors_argument_has_two_values(ask):
    with pytest.raises(ValueError, match="return"):
        ask("embed", ["a"], errors="ignore")


def test_both_clients_have_the_same_methods():
    def face(client):
        classes = [c for c in client.__mro__ if c is not object]
        methods = {name: method for c in classes for name, method in vars(c).items() if not name.startswith("_")}
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in methods.items()
        }

    assert face(Client) == face(AsyncClient)
    tasks = {"answer", "classify", "fill_mask", "rerank", "score", "tag"}
    assert set(face(Client)) == tasks | {
        "chat", "close", "detokenize", "embed", "generate", "generate_many", "health", "models", "stream",
        "stream_many", "tokenize", "wait_ready",
    }  # fmt: skip
    for name in set(face(Client)) - {"close"}:
        assert {"timeout", "options"} & set(inspect.signature(getattr(Client, name)).parameters), name


def test_everything_public_is_exported_and_described():
    from tercet.client import aio, errors, many, streams, sync

    public = {*errors.__all__, *results.__all__, "Sampling"}
    for module in (aio, many, streams, sync):
        public |= {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
        }
    assert set(tercet.client.__all__) == public - {"AsyncMany", "Many", "ManyOptions", "Pieces"}
    assert tercet.client.__all__ == sorted(tercet.client.__all__)
    assert set(dir(tercet.client)) == set(tercet.client.__all__)
    for name in tercet.client.__all__:
        value = getattr(tercet.client, name)
        assert not inspect.isclass(value) or value.__doc__, name
    assert not hasattr(tercet.client, "nothing_of_that_name")


def test_errors_module_exports_every_error():
    from tercet.client import errors

    tree = {TercetError, *TercetError.__subclasses__()}
    assert {error.__name__ for error in tree} | {"FieldViolation"} == set(errors.__all__)
    for error in TercetError.__subclasses__():
        assert f"── {error.__name__} " in errors.__doc__


def test_results_are_frozen(ask):
    for name in results.__all__:
        value = getattr(results, name)
        if is_dataclass(value):
            assert value.__dataclass_params__.frozen, name
    generation = ask("generate", "a")
    with pytest.raises(FrozenInstanceError):
        generation.model = "b"
    names = ["model", "outputs", "usage", "truncated", "seed", "prompt_token_ids", "prompt_logprobs"]
    assert [field.name for field in fields(generation)] == names
