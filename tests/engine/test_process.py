"""The engine's process: its messages, and how it ends."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from msgspec import structs

from support.checkpoints import VOCAB_SIZE, tiny_llama
from support.engine import generate
from support.engine_process import engine_process, outputs_of
from tercet.server import frames, wire
from tercet.server.engine import connection
from tercet.server.wire import Embeds, token_ids

LONG = {"new_tokens": 200, "temperature": 1.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("checkpoint"))


def test_life_of_an_engine(checkpoint):
    with engine_process(source=str(checkpoint), incarnation=3, memory=1 << 28, page_size=8) as engine:
        *loading, ready = engine.started()
        assert isinstance(ready, wire.Ready), ready
        stages = [message.stage for message in loading]
        assert sorted(set(stages), key=stages.index) == ["weights", "pages", "warm-up"]
        assert all(0 <= message.done <= message.total for message in loading)
        assert {message.incarnation for message in [*loading, ready]} == {3}
        model = ready.model
        assert (model.architecture, model.family, model.tasks) == ("llama", "decoder", ["embed", "generate", "score"])
        assert (model.max_length, model.vocab_size, model.page_size) == (256, VOCAB_SIZE, 8)
        assert model.pages == 8 * 32
        assert model.memory > model.pages * 8 * 2 * 3 * 2 * 16 * 4

        answers = engine.answers(generate(1, [5, 6, 7], 4, n=2), generate(2, [9], 3), count=3)
        assert {key: len(tokens) for key, tokens in answers.tokens.items()} == {(1, 0): 4, (1, 1): 4, (2, 0): 3}
        assert answers.tokens[1, 0] == answers.tokens[1, 1]
        assert answers.steps[-1].pages_used == 0
        assert answers.steps[-1].kernel_launches["paged_attention/cpu"] > 0

        # A reader that goes away: its pages are free after the next step, the other's remain.
        engine.send(generate(3, [1] * 40, **LONG), generate(4, [2, 3], **LONG))
        while (step := engine.receive()).pages_used < 6:
            pass
        engine.send(wire.Cancel(id=3))
        while step.pages_used >= 6:
            step = engine.receive()
        engine.send(generate(5, [9], 1))
        ids = set()
        while 5 not in ids:
            ids = {output.id for output in engine.outputs()}
        assert ids == {4, 5}
        engine.send(wire.Cancel(id=4), wire.Cancel(id=99))
        while (step := engine.receive()).running:
            pass
        assert (step.pages_used, step.waiting) == (0, 0)
        assert all(not step.outputs for step in answers.steps)

        rejected = engine.answers(generate(6, [VOCAB_SIZE], 4), count=1).rejected
        assert rejected == {6: "invalid"}
        rejected = engine.answers(generate(7, [1], 4, deadline=time.monotonic() - 1), count=1).rejected
        assert rejected == {7: "deadline"}

        engine.process.send_signal(signal.SIGINT)  # a terminal's Ctrl-C is the supervisor's matter
        assert len(engine.answers(generate(8, [5, 6, 7], 4), count=1).tokens[8, 0]) == 4

        engine.send(generate(9, [1], **LONG))
        engine.stop()
        assert engine.exit_code(5) == 0


def test_a_busy_engine_ends_with_its_socket(checkpoint):
    with engine_process(source=str(checkpoint)) as engine:
        engine.started()
        engine.send(*(generate(key, [1], **LONG) for key in range(50)))
        engine.receive()
        engine.socket.close()
        assert engine.exit_code(2) == 0


def test_a_loading_engine_ends_with_its_socket(checkpoint):
    with engine_process(source=str(checkpoint)) as engine:
        engine.socket.close()
        assert engine.exit_code() == 0


def test_front_ends_hear_what_they_asked_alone_and_may_leave(checkpoint):
    """One of three goes in the middle: its pages are free after the next step. Another breaks the protocol."""
    with engine_process(source=str(checkpoint), page_size=8) as engine:
        engine.started()
        ends = [engine.front_end() for _ in range(3)]
        firsts = [first for _, _, first in ends]
        assert len(set(firsts)) == 3
        for (end, _, _), first in zip(ends, firsts, strict=True):
            end.sendall(b"".join(frames.encode(generate(first + key, [key + 1] * 40, **LONG)) for key in range(2)))
        while (step := engine.receive()).running < 6:
            pass
        used = step.pages_used
        ends[0][0].close()
        while (step := engine.receive()).running > 4:
            pass
        assert step.pages_used < used
        for _, answers, first in ends[1:]:
            for _ in range(3):
                assert {output.id for output in outputs_of(answers.next())} <= {first, first + 1}
        ends[1][0].sendall(b"\x01\x00\x00\x00\xff")
        while (step := engine.receive()).running > 2:
            pass
        with pytest.raises((EOFError, ConnectionResetError)):
            ends[1][1].rest()
        last, answers, first = ends[2]
        last.sendall(b"".join(frames.encode(wire.Cancel(id=first + key)) for key in range(2)))
        while (step := engine.receive()).running:
            pass
        assert step.pages_used == 0
        ends[1][0].close()
        last.close()


def test_a_front_end_that_does_not_read_holds_nobody_up_for_long(checkpoint):
    """The others' answers go on; what it missed is there when it reads again."""
    with engine_process(source=str(checkpoint), max_length=256) as engine:
        engine.started()
        engine.answers(generate(0, [5], 1), count=1)
        stalled, answers, first = engine.front_end()
        lengths, ids = token_ids([64] * 100), token_ids([1] * 6400)
        texts = [
            Embeds(id=key, lengths=lengths, token_ids=ids, pooling="none", normalize=True)
            for key in range(first, first + 600, 100)
        ]
        stalled.sendall(b"".join(map(frames.encode, texts)))  # more than a socket holds
        assert len(engine.answers(generate(1, [5, 6, 7], 4), count=1).tokens[1, 0]) == 4
        got = []
        while len(got) < len(texts):
            got += [output.id for output in answers.next().outputs]
        assert got == [embeds.id for embeds in texts]
        stalled.close()


def test_a_batch_is_answered_once_it_is_whole(checkpoint):
    """In the order of its sequences, whatever batches they ran in; what the engine refuses of it is told by place. One
    whose columns do not fit ends the connection.
    """
    with engine_process(source=str(checkpoint), max_length=64, max_batch_tokens=64) as engine:
        engine.started()
        end, answers, first = engine.front_end()
        lengths = [3, 40, 1, 65, 40, 0, 5]
        batch = Embeds(
            id=first,
            lengths=token_ids(lengths),
            token_ids=token_ids(5 + i % 7 for i in range(sum(lengths))),
            pooling="mean",
            normalize=True,
        )
        alone = [
            structs.replace(batch, id=one.id + 10, lengths=token_ids([len(one.token_ids)]), token_ids=one.token_ids)
            for one in batch.rows()
            if 0 < len(one.token_ids) < 64
        ]
        end.sendall(frames.encode(batch))
        [whole] = answers.next().outputs
        assert {place: rejected.reason for place, rejected in whole.rejected.items()} == {3: "invalid", 5: "invalid"}
        vectors = b""
        for one in alone:
            end.sendall(frames.encode(one))
            [output] = answers.next().outputs
            vectors += output.data
        assert np.allclose(np.frombuffer(whole.data, np.float32), np.frombuffer(vectors, np.float32), atol=1e-5)
        end.sendall(frames.encode(structs.replace(batch, lengths=token_ids([1]))))
        with pytest.raises((EOFError, ConnectionResetError)):
            answers.rest()
        end.close()


def test_answers_of_one_step_that_no_frame_holds_together_come_in_several(monkeypatch):
    outputs = [wire.Embeddings(id=id, data=b"x" * 60, rejected={}) for id in range(5)]
    columns = wire.NextTokens(ids=[9], samples=[], token_ids=[4])
    monkeypatch.setattr(frames, "MAX_FRAME", 250)
    encoded = list(connection.encoded(wire.Answers(incarnation=1, outputs=outputs, next_tokens=columns)))
    answers = [frames.to_front_end_decoder.decode(data[4:]) for data in encoded]
    assert [output for one in answers for output in one.outputs] == outputs
    assert [one.next_tokens for one in answers if one.next_tokens] == [columns]
    assert len(answers) > 1


def test_an_engine_ends_with_its_parent(checkpoint):
    """The parent is killed: nobody closes anything, and still no engine is left behind."""
    code = (
        "import sys; from support.engine_process import EngineProcess\n"
        "engine = EngineProcess(source=sys.argv[1]); engine.started()\n"
        "print(engine.process.pid, flush=True); engine.receive()"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    path = os.pathsep.join(["tests", *sys.path])  # the sources that this test runs with
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_engine_that_can_not_start_says_why():
    with engine_process(source="/nowhere/at/all") as engine:
        failed = engine.started()[-1]
        assert isinstance(failed, wire.Failed)
        assert "/nowhere/at/all" in failed.message
        assert "\n" not in failed.message
        engine.socket.close()
        assert engine.exit_code() == 2
        assert b"Traceback" not in engine.process.stderr.read()


def test_an_engine_that_fails_blames_nobody(checkpoint):
    """What neither checkpoint nor settings are known to cause is not refused but logged, and may be tried again."""
    with engine_process(source=str(checkpoint), device="cuda:99") as engine:
        with pytest.raises(EOFError):
            engine.started()
        assert engine.exit_code() == 1
        log = engine.process.stderr.read()
    assert b"engine failed" in log
    assert b"Traceback" in log
