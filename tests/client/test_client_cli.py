"""The `tercet` command as a user meets it: arguments, pipes, exit codes, one line for an error."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint, EntryPoints

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from support.fake_embedding import vector
from support.fake_service import REFUSED, REQUEST_ID, Failure
from tercet.client import cli
from tercet.v1.types_pb2 import TextInput


def assert_fails(done, code, *words):
    """The exit code, and one line on stderr that says why."""
    message = done.stderr.decode()
    assert done.returncode == code, message
    assert message.startswith("tercet: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_health_of_the_server(process):
    done = process("health")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"SERVING\n", b"")


def test_health_of_a_model_that_does_not_serve(tercet):
    assert (tercet("health", "echo").returncode, tercet("health", "broken").returncode) == (0, 1)
    done = tercet("health", "broken", "--json")
    assert json.loads(done.stdout) == {"model": "broken", "status": "NOT_SERVING"}


def test_health_of_a_model_that_is_not_there(tercet):
    done = tercet("health", "nobody")
    assert (done.returncode, done.stdout) == (1, b"SERVICE_UNKNOWN\n")


def test_health_out_of_reach(process, free_port):
    assert_fails(process("health", "--target", f"127.0.0.1:{free_port}"), 3, "Connection refused")


def test_health_without_an_answer(tercet, fake):
    fake.delay = 60
    assert_fails(tercet("health", "--timeout", "0.3"), 3, "Deadline")


def test_target_of_the_command_line_comes_before_the_environment(tercet, fake, free_port):
    done = tercet("health", "--target", fake.address, TERCET_TARGET=f"127.0.0.1:{free_port}")
    assert done.returncode == 0


def test_token_of_the_environment(tercet, fake):
    assert tercet("models", TERCET_TOKEN="s3cret").returncode == 0  # noqa: S106
    assert fake.attempts("List")[0][2]["authorization"] == "Bearer s3cret"


def test_token_is_not_sent_in_the_clear(tercet):
    done = tercet("models", "--token", "s3cret", "--target", "models.example.org:1")
    assert done.returncode == 2
    assert b"unencrypted" in done.stderr
    assert b"s3cret" not in done.stderr


def test_tls_to_a_server_without_it(process):
    assert_fails(process("health", "--tls", "--timeout", "5"), 3)


def test_certificates_that_are_not_there(tercet, tmp_path):
    done = tercet("health", "--ca", tmp_path / "nothing.pem")
    assert done.returncode == 2
    assert b"nothing.pem" in done.stderr


def test_models(tercet):
    lines = tercet("models").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "count", "echo"]
    assert lines[2].split()[1:5] == ["ready", "decoder", "llama", "generate,chat"]
    assert "fp8 (error 2.6e-02)" in lines[2]
    count, echo = json.loads(tercet("models", "--json").stdout)
    assert (count["quantization_error"], round(echo["quantization_error"], 6)) == (None, 0.026)
    assert (count["embedding_size"], echo["name"], echo["tasks"]) == (3, "echo", ["generate", "chat"])


def test_embed_arguments(tercet):
    done = tercet("embed", "abc", "é")
    np.testing.assert_array_equal(np.loadtxt(done.stdout.decode().splitlines()), [[3, 294, 97], [1, 233, 233]])


def test_embed_lines_of_stdin_as_json(process):
    done = process("embed", "--json", stdin="a\n\nzürich 🤖\n".encode())
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    expected = [vector(TextInput(text=text)) for text in ("a", "", "zürich 🤖")]
    np.testing.assert_array_equal([row["embedding"] for row in rows], expected)


def test_embed_lines_of_a_file_into_an_array(tercet, tmp_path):
    (tmp_path / "texts").write_text("one\ntwo\n", encoding="utf-8")
    done = tercet("embed", "--file", tmp_path / "texts", "--output", tmp_path / "vectors.npy")
    assert done.returncode == 0
    vectors = np.load(tmp_path / "vectors.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 3))


def test_embed_nothing(tercet):
    assert_fails(tercet("embed", stdin=b""), 2, "inputs")


def test_input_that_is_not_utf8(process):
    assert_fails(process("embed", stdin=b"caf\xe9\n"), 2, "UTF-8")


def test_file_that_is_not_there(tercet, tmp_path):
    done = tercet("embed", "--file", tmp_path / "nothing")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_refused_input_names_field_and_request(tercet):
    assert_fails(tercet("embed", "a", REFUSED), 2, "inputs[1].text", "limit is 8")


def test_unknown_model(process):
    assert_fails(process("embed", "a", "--model", "gone"), 1, "there are: count, echo", REQUEST_ID)


def test_message_of_several_lines_becomes_one(tercet, fake):
    fake.failures["List"] = [Failure(grpc.StatusCode.INTERNAL, "first\nsecond")]
    assert_fails(tercet("models"), 1, "first second")


def test_wrong_usage(tercet):
    for arguments in (["nonsense"], ["embed", "--nonsense"], ["generate", "a", "--top-k", "many"], ["models", "extra"]):
        done = tercet(*arguments)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
    assert_fails(tercet("generate", "a", "--max-new-tokens", "-1"), 2, "sampling.max_new_tokens")
    assert tercet("health", "--timeout", "0").returncode == 2


def test_generate_streams(tercet, fake):
    options = ["--temperature", "0", "--stop", "x", "--stop", "y", "--seed", "3", "--cache-salt", "ours", "--stats"]
    done = tercet("generate", "one two é", *options)
    assert done.stdout.decode() == "one two é\n"
    assert b"tokens/s, 3 tokens, 4 of 5 prompt tokens cached" in done.stderr
    ((_, request, *_),) = fake.attempts("GenerateStream")
    assert request.sampling.temperature == 0
    assert request.sampling.HasField("temperature")
    assert list(request.sampling.stop.values) == ["x", "y"]
    assert (request.sampling.seed, request.cache_salt) == (3, "ours")
    assert not request.sampling.HasField("top_k")
    assert fake.time_left[0] > 1e6  # seconds: none, since an answer may be long


def test_calls_that_are_not_streams_have_a_time_limit(tercet, fake):
    tercet("models")
    tercet("health")
    tercet("health", "--timeout", "2")
    assert [round(left, -1 if left > 10 else 0) for left in fake.time_left] == [60, 5, 2]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_generate_from_stdin(tercet, arguments):
    assert tercet("generate", *arguments, stdin=b"one\ntwo\n").stdout == b"one\ntwo\n"


def test_generate_json(tercet):
    result = json.loads(tercet("generate", "a", "--json", "--n", "2").stdout)
    assert [output["text"] for output in result["outputs"]] == ["a#0", "a#1"]
    assert result["usage"] == {"prompt_tokens": 5, "generated_tokens": 6, "cached_tokens": 4}


def test_generate_many_prompts_in_their_order(tercet, fake, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("c c c c\nb\na a\n", encoding="utf-8")
    assert tercet("generate", "--file", lines).stdout == b"c c c c\nb\na a\n"
    assert len(fake.attempts("GenerateMany")) == 1
    done = tercet("generate", "-f", "-", "--json", "-n", "2", "--max-new-tokens", "3", stdin=b"x\ny\n")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[output["text"] for output in result["outputs"]] for result in results] == [["x x x"] * 2, ["y y y"] * 2]
    assert_fails(tercet("generate", "-f", "-", stdin=f"a\n{REFUSED}\n".encode()), 2, "input.text")
    assert tercet("generate", "a prompt", "--file", lines).returncode == 2


def test_several_outputs(tercet):
    assert tercet("generate", "a", "-n", "2").stdout == b"a#0\na#1\n"


def test_chat_one_message(tercet):
    done = tercet("chat", "hello", "--system", "be kind")
    assert done.stdout == b"system:be kind user:hello\n"
    assert json.loads(tercet("chat", "hello", "--json").stdout)["outputs"][0]["text"] == "user:hello#0"


def test_chat_keeps_the_conversation(tercet, fake):
    done = tercet("chat", stdin=b"hello\n\nagain\n/clear\nanew\n/exit\nnever\n")
    assert done.stdout.decode().splitlines() == [
        "user:hello",
        "user:hello assistant:user:hello user:again",
        "user:anew",
    ]


def test_chat_goes_on_after_an_error(tercet, fake):
    fake.failures["GenerateStream"] = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "too long")]
    done = tercet("chat", stdin=b"hello\nagain\n")
    assert done.returncode == 0
    assert done.stdout.decode().split("\n") == ["", "user:again", ""]
    assert done.stderr.decode() == f"tercet: too long (request {REQUEST_ID})\n"


def test_tokenize(tercet):
    assert tercet("tokenize", "hé").stdout.decode() == "104 233\nh é\n"
    assert json.loads(tercet("tokenize", "hé", "--json").stdout) == {
        "token_ids": [104, 233],
        "tokens": ["h", "é"],
        "offsets": [[0, 1], [1, 2]],
    }


def test_characters_that_the_terminal_lacks(process):
    assert process("generate", "é 🤖", LC_ALL="C").stdout.decode() == "é 🤖\n"
    assert process("generate", "é 🤖", PYTHONIOENCODING="latin-1").stdout == b"\xe9 \\U0001f916\n"


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tercet.client.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def test_pieces_arrive_as_they_come(environment, fake):
    fake.delay = 0.5
    with start(environment, "generate", "first second") as process:
        assert process.stdout.read(6) == b"first "
        assert process.poll() is None
        assert process.communicate(timeout=30)[0] == b"second\n"


def test_interrupt_is_clean(environment, fake):
    fake.delay = 0.05
    with start(environment, "generate", "word", "--max-new-tokens", "5000") as process:
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")
    assert fake.stream_ended.wait(5)


def test_interrupt_of_a_call_without_stream(environment, fake):
    fake.delay = 60
    with start(environment, "models") as process:
        while not fake.attempts("List"):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize(
    "arguments", [["generate", "word", "--max-new-tokens", "5000"], ["embed", "--json", *("word " * 300).split()]]
)
def test_broken_pipe_is_clean(environment, fake, arguments):
    fake.delay = 0.01
    with start(environment, *arguments) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # much less than is written, however late the reader is
        process.stdout.read(5)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(30)
    assert errors == b""
    assert process.returncode == 1


def test_help_and_version(tercet):
    help_text = tercet("--help").stdout.decode()
    for command in ("embed", "generate", "chat", "tokenize", "models", "health", "serve"):
        assert command in help_text
    assert "TERCET_TARGET" in tercet("embed", "-h").stdout.decode()
    done = tercet("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"tercet ")


@pytest.fixture
def added(monkeypatch):
    """Puts entry points in the place of those that are installed."""

    def install(value):
        entry = EntryPoint("added", value, cli.COMMAND_GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda **match: EntryPoints([entry]).select(**match))
        return lambda *arguments: CliRunner().invoke(cli.app, arguments)

    return install


def test_commands_of_other_packages(added, tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(
        "def added(count: int = 1):\n  '''Adds something.'''\n  print('added', count)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tercet = added("somebodys:added")
    assert "Adds something." in tercet("--help").stdout
    assert tercet("added", "--count", "3").stdout == "added 3\n"


def test_commands_of_other_packages_are_imported_only_when_wanted(added):
    tercet = added("a_module_that_is_not_there:added")
    assert tercet("--version").exit_code == 0
    assert "a_module" not in tercet("--version").output
    done = tercet("added", "NAME=SOURCE", "--port", "0")
    assert done.exit_code == 1
    assert done.stderr == "tercet: added needs a_module_that_is_not_there: pip install 'tercet[server]'\n"
    assert "server" in tercet("--help").stdout
