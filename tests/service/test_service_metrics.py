"""What /metrics says adds up to what clients saw, and is named as Prometheus wants."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tercet.server import control, frames
from tercet.server.link import Link
from tercet.server.metrics import Histogram, TokenGaps
from tercet.server.server_metrics import ServerMetrics
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.models_pb2 import GetModelRequest, ListModelsRequest
from tercet.v1.text_pb2 import TokenizeRequest
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path


def ids(*values: int) -> TextInput:
    return TextInput(token_ids=TokenIds(values=values))


@pytest.fixture(scope="module")
def load(checkpoints: dict[str, Path], start, connect):
    """A server after some calls, good and bad; what the client counted; and the exposition."""
    seen: Counter[tuple[str, str]] = Counter()
    tokens: Counter[str] = Counter()

    def call(method: str, run) -> None:
        code = "OK"
        try:
            answer = run()
            if method in ("Embed", "Generate"):
                tokens["prompt"] += answer.usage.prompt_tokens
                tokens["cached"] += answer.usage.cached_tokens
                tokens["generated"] += answer.usage.generated_tokens
            elif method == "GenerateStream":
                pieces = list(answer)
                tokens["prompt"] += pieces[-1].usage.prompt_tokens
                tokens["cached"] += pieces[-1].usage.cached_tokens
                tokens["generated"] += sum(len(piece.token_ids) for piece in pieces)
        except grpc.RpcError as error:
            code = error.code().name
        seen[method, code] += 1

    with start(checkpoints) as server, connect(server) as stubs:
        embed, generate, stream = stubs.embedding.Embed, stubs.generation.Generate, stubs.generation.GenerateStream
        for length in range(1, 8):
            few = SamplingParameters(max_new_tokens=length, n=2)
            call("Embed", lambda n=length: embed(EmbedRequest(inputs=[ids(*[5] * n)] * n)))
            call("Generate", lambda few=few: generate(GenerateRequest(model="decoder", input=ids(5, 6), sampling=few)))
            call("GenerateStream", lambda few=few: stream(GenerateRequest(model="seq2seq", input=ids(5), sampling=few)))
        call("Embed", lambda: embed(EmbedRequest()))
        call("Embed", lambda: embed(EmbedRequest(model="nobody", inputs=[ids(5)])))
        call("Embed", lambda: embed(EmbedRequest(inputs=[ids(52)]), timeout=0.1))
        call("Generate", lambda: generate(GenerateRequest(model="encoder", input=ids(5))))
        call("Generate", lambda: stubs.channel.unary_unary("/tercet.v1.GenerationService/Generate")(b"\xff"))
        call("List", lambda: stubs.models.List(ListModelsRequest()))
        call("Get", lambda: stubs.models.Get(GetModelRequest(name="encoder")))
        call("Tokenize", lambda: stubs.text.Tokenize(TokenizeRequest(model="encoder", texts=["w5"])))
        exposition = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
        yield seen, tokens, exposition


@pytest.fixture(scope="module")
def samples(load):
    return [sample for family in text_string_to_metric_families(load[2]) for sample in family.samples]


def total(samples, name: str, *by: str, **labels: str) -> Counter[tuple[str, ...]]:
    """The samples of a name with those labels, summed by others."""
    sums: Counter[tuple[str, ...]] = Counter()
    for sample in samples:
        if sample.name == name and labels.items() <= sample.labels.items():
            sums[tuple(sample.labels[label] for label in by)] += sample.value
    return sums


def test_every_call_is_counted_once_by_method_and_code(load, samples):
    assert total(samples, "tercet_requests_total", "method", "code") == load[0]
    durations = total(samples, "tercet_request_duration_seconds_count", "method")
    assert sum(durations.values()) == sum(load[0].values())


def test_models_in_labels_are_served_ones(samples):
    models = {sample.labels["model"] for sample in samples if "model" in sample.labels}
    assert models == {"", "decoder", "encoder", "seq2seq"}


def test_tokens_are_those_the_client_counted(load, samples):
    prompt, generated = load[1]["prompt"], load[1]["generated"]
    assert total(samples, "tercet_prompt_tokens_total")[()] == prompt
    assert total(samples, "tercet_generated_tokens_total")[()] == generated
    assert total(samples, "tercet_request_generated_tokens_sum")[()] == generated
    assert total(samples, "tercet_batch_tokens_total", kind="real")[()] == prompt + generated
    assert total(samples, "tercet_batch_tokens_total", kind="padding")[()] > 0


def test_what_was_found_is_what_the_client_was_told(load, samples):
    hits = {kind: total(samples, f"tercet_{kind}_cache_hits_total")[()] for kind in ("prefix", "source")}
    queries = {kind: total(samples, f"tercet_{kind}_cache_queries_total")[()] for kind in ("prefix", "source")}
    assert hits["prefix"] == hits["source"] == 6
    assert sum(hits.values()) == load[1]["cached"]
    assert queries == {"prefix": 14, "source": 7}
    assert total(samples, "tercet_kv_cache_cached_blocks", model="decoder")[()] == 1
    assert total(samples, "tercet_kv_cache_evictions_total", model="decoder")[()] == 1


def test_outputs_are_timed(load, samples):
    streams = total(samples, "tercet_time_to_first_token_seconds_count", "model")
    assert streams == {("decoder",): 14, ("seq2seq",): 14}
    assert total(samples, "tercet_time_per_output_token_seconds_count")[()] == 24  # those of one token have no pace
    between = total(samples, "tercet_inter_token_latency_seconds_count")[()]
    assert between == load[1]["generated"] - 28


def test_refusals_and_departures_have_their_reasons(samples):
    assert total(samples, "tercet_requests_rejected_total", "model", "reason") == {
        ("encoder", "invalid"): 1,
        ("", "invalid"): 1,
    }
    assert total(samples, "tercet_requests_cancelled_total", "model", "stage") == {("encoder", "queued"): 1}


def test_engines_are_described(samples):
    assert total(samples, "tercet_model_info", "model", "family")[("seq2seq", "seq2seq")] == 1
    assert total(samples, "tercet_kv_cache_blocks", "state", model="decoder") == {("free",): 64, ("used",): 0}
    launches = total(samples, "tercet_kernel_launches_total", "op", "impl")
    steps = total(samples, "tercet_engine_step_duration_seconds_count")[()]
    assert launches == {("attention", "cpu"): steps}
    assert total(samples, "tercet_host_to_device_copies_total")[()] == steps
    assert total(samples, "tercet_build_info", "version")
    assert total(samples, "process_resident_memory_bytes")[()] > 1 << 20


def test_names_follow_the_rules_of_prometheus(load):
    """promtool's rules where it is installed; always the ones that its check is about."""
    for family in text_string_to_metric_families(load[2]):
        if not family.name.startswith("tercet_"):
            continue
        assert family.documentation
        assert not {"milliseconds", "ms", "minutes", "kb", "percent"} & set(family.name.split("_"))
        assert family.type == "counter" or not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    if promtool := shutil.which("promtool"):
        ours = load[2][load[2].index("# HELP tercet_") :]
        done = subprocess.run([promtool, "check", "metrics"], input=ours, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_not_too_many_series(samples):
    assert len([sample for sample in samples if sample.name.startswith("tercet_")]) < 2000


@pytest.mark.parametrize("rests", [False, True])
async def test_what_was_sent_before_a_scrape_is_in_it(tmp_path: Path, rests: bool):
    """The supervisor reads before it tells, a link that rests, too: who learnt of a step from its answers finds it
    counted.
    """
    metrics = ServerMetrics(tmp_path / "metrics")
    port = metrics.serve("127.0.0.1", 0)
    ours, theirs = socket.socketpair()
    counter = metrics.front_end_restarts.labels("exit")

    def count(_: control.ToSupervisor) -> None:
        counter.inc()
        if rests:
            link.rest(3600)

    link = Link(control.to_supervisor_decoder, count, lambda: None)
    metrics.before_scrape.append(link.wake)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)

    def send_and_scrape() -> str:
        theirs.sendall(frames.encode(control.Serving()))
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()

    for sent in range(1, 101):
        exposition = await asyncio.to_thread(send_and_scrape)
        assert f'tercet_front_end_restarts_total{{reason="exit"}} {sent}.0' in exposition
    transport.abort()
    theirs.close()


def test_gaps_are_observed_together_as_they_would_be_alone():
    buckets, singly, together = (0.25, 1.0), CollectorRegistry(), CollectorRegistry()
    alone = Histogram("gaps", "Between tokens.", buckets=buckets, registry=singly)
    gaps = TokenGaps(Histogram("gaps", "Between tokens.", buckets=buckets, registry=together))
    for arrived, since, tokens in [
        (8.0, 7.75, 1),  # on the bound of a bucket
        (8.0, 7.75, 1),
        (8.0, 7.5, 4),  # of one row: an eighth of a second each
        (8.125, 8.0, 1),
        (8.25, 5.25, 2),  # beyond the last bound
        (8.25, 8.125, 1),
    ]:
        gaps[(arrived - since) / tokens] += tokens
        for _ in range(tokens):
            alone.observe((arrived - since) / tokens)
    gaps.flush()
    gaps.flush()
    [expected], [found] = singly.collect(), together.collect()
    assert found.samples == expected.samples
