"""The commands of `tercet` for models with heads."""

import json

import pytest

from tercet.v1.understanding_pb2 import AGGREGATION_AVERAGE


def lines(done):
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_rerank(tercet):
    assert lines(tercet("rerank", "q", "a", "abc")) == ["3.000000\t1\tabc", "1.000000\t0\ta"]
    (best,) = lines(tercet("rerank", "q", "--top-k", "1", "--json", stdin=b"a\nbcd\n"))
    assert json.loads(best) == {"index": 1, "score": 3.0, "truncated": False, "text": "bcd"}


def test_classify(tercet, fake):
    assert lines(tercet("classify", "abc")) == ["3.000000\tgood", "3.000000\tbad"]
    assert lines(tercet("classify", "a", "bc", "--top-k", "1"))[::3] == ["# a", "# bc"]
    assert lines(tercet("classify", "a", "-l", "x", "-l", "y", "--template", "{}!")) == ["1.000000\tx", "1.000000\ty"]
    assert fake.attempts("Classify")[-1][1].zero_shot.template == "{}!"
    assert lines(tercet("classify", "a", "--pair", "bc"))[0] == "3.000000\tgood"
    assert json.loads(*lines(tercet("classify", "a", "--json")))["results"][0] == {"label": "good", "score": 1.0}


def test_tag(tercet, fake):
    assert lines(tercet("tag", "né b", "--aggregation", "average", "--stride", "4")) == [
        "WORD\t0\t2\t1.000000\tné",
        "WORD\t3\t4\t1.000000\tb",
    ]
    request = fake.attempts("Tag")[0][1]
    assert (request.aggregation, request.stride) == (AGGREGATION_AVERAGE, 4)
    result = tercet("tag", "a", "--aggregation", "best")
    assert result.returncode == 2
    assert b"aggregation" in result.stderr


def test_fill_mask(tercet):
    assert lines(tercet("fill-mask", "[MASK]!")) == ["0.500000\ta", "0.500000\tb"]
    assert lines(tercet("fill-mask", "[MASK] [MASK]", "--candidate", "x")) == [*("# [MASK] [MASK]", "0.500000\tx") * 2]


def test_answer(tercet):
    assert lines(tercet("answer", "who", "tell me who")) == ["0.750000\t8\t11\twho"]
    assert json.loads(*lines(tercet("answer", "who", "--json", stdin=b"who\n")))["end"] == 3


def test_score(tercet):
    assert lines(tercet("score", "ab")) == ["2.5\t-2.000000\t2\tab"]
    assert lines(tercet("score", "b", "--source", "a")) == ["2.5\t-2.000000\t2\tb"]
    assert json.loads(*lines(tercet("score", "a", "--json")))["token_ids"] == [97]


def test_generate_by_task_language_and_beams(tercet, fake):
    options = ["--task", "t", "--source-lang", "en", "--target-lang", "de", "--num-beams", "3", "--length-penalty", "0"]
    assert lines(tercet("generate", "a b", *options)) == ["a b"]
    request = fake.attempts("GenerateStream")[0][1]
    assert (request.task, request.source_lang, request.target_lang) == ("t", "en", "de")
    assert (request.sampling.num_beams, request.sampling.length_penalty) == (3, 0)


@pytest.mark.parametrize("command", ["classify", "tag", "fill-mask", "score"])
def test_no_text_is_wrong_usage(tercet, command):
    assert tercet(command, stdin=b"").returncode == 2


def test_embed_options(tercet, fake):
    assert lines(tercet("embed", "a", "--pooling", "cls", "--dimensions", "2", "--prompt-name", "query"))
    request = fake.attempts("Embed")[0][1]
    assert (request.pooling, request.dimensions, request.prompt_name) == (2, 2, "query")
    assert tercet("embed", "a", "--pooling", "none").returncode == 2
