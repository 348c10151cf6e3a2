"""Peer servers: how they are asked, and what comes of one that is missing, fails or answers something else."""

import json
import stat
import sys

import numpy as np
import pytest
from benchmarks.peers import contests, servers
from benchmarks.peers.servers import EMBEDDERS, GENERATORS, PeerError, start
from benchmarks.rows import Settings

from benchmarks import runner

QUICK = Settings(rounds=1, threads=1, settle=0)
# A program that answers as the peers' documents say, told what it was asked in a file.
SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np
sys.path[:0] = {path}
options = sys.argv[1:]
broken = {broken}
if broken == "start":
    sys.exit("no such flag")
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, None)
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if broken == "answer":
            return self.answer(500, {{"error": "out of memory"}})
        if self.path == "/embed":
            return self.answer(200, [vector(text) for text in asked["inputs"]])
        if self.path == "/embeddings":
            return self.answer(200, {{"data": [{{"embedding": vector(text)}} for text in asked["input"]]}})
        if self.path == "/v1/completions":
            assert asked["ignore_eos"] and asked["temperature"] == 0 and asked["prompt"] == [5, 6, 7]
            return self.answer(200, {{"usage": {{"completion_tokens": asked["max_tokens"]}}}})
        self.answer(404, None)
    def log_message(self, *arguments):
        pass
def vector(text):
    made = np.random.default_rng(len(text)).normal(size=384)
    return (made / np.linalg.norm(made)).tolist()
ThreadingHTTPServer(("127.0.0.1", int(options[options.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a program on PATH."""

    def put(program, broken=None):
        file = tmp_path / program
        file.write_text(SERVER.format(python=sys.executable, path=json.dumps(sys.path), broken=repr(broken)))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


@pytest.mark.parametrize("peer", EMBEDDERS, ids=lambda peer: peer.name)
def test_embedders_are_asked_as_they_expect(peer, install, tmp_path):
    install(peer.program)
    assert peer.installed
    with start(peer, tmp_path) as server:
        vectors = np.array(server.ask(["a", "bc"]))
    assert vectors.shape == (2, 384)


@pytest.mark.parametrize("peer", GENERATORS, ids=lambda peer: peer.name)
def test_generators_are_asked_as_they_expect(peer, install, tmp_path):
    install(peer.program)
    with start(peer, tmp_path) as server:
        assert server.ask([5, 6, 7], 9) == 9


def test_what_a_peer_complains_of_is_told(install, tmp_path):
    install("vllm", broken="start")
    with pytest.raises(PeerError, match="vLLM did not come up: no such flag"), start(GENERATORS[0], tmp_path):
        pass
    install("vllm", broken="answer")
    with start(GENERATORS[0], tmp_path) as server, pytest.raises(PeerError, match=r"500: .*out of memory"):
        server.ask([5], 1)


def test_a_peer_with_other_vectors_is_not_measured(install):
    install(EMBEDDERS[0].program)
    result = contests.embedding(EMBEDDERS[0], QUICK)
    assert result.missed == ["correctness"]
    assert "vectors differ from TEI's" in result.not_measured


def test_missing_peers_are_told_and_the_tier_is_run_when_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(servers, "which", lambda program: None)
    assert "peers" not in runner.TIERS
    code = runner.main(["peers", "--skip-tests", "--rounds", "1", "--output", str(tmp_path)])
    table = capsys.readouterr().out
    assert code == 0
    for peer in (*EMBEDDERS, *GENERATORS):
        assert f"not measured: {peer.program} is not installed" in table
