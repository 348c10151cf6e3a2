"""How failures reach the caller: types, fields, request ids, single items, retries, timeouts, readiness."""

import asyncio
import pickle
import threading
import time

import grpc
import numpy as np
import pytest

from support.fake_embedding import vector
from support.fake_service import (
    REFUSED,
    REQUEST_ID,
    Failure,
    bad_request,
    error_info,
    fake_service,
    retry_info,
)
from tercet import client as tercet
from tercet.client import AsyncClient, Client, TercetError
from tercet.client.channel import channel_options, is_local
from tercet.v1.types_pb2 import TextInput

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: tercet.InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: tercet.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: tercet.PermissionDenied,
    grpc.StatusCode.NOT_FOUND: tercet.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: tercet.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: tercet.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: tercet.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: tercet.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: tercet.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: tercet.Unimplemented,
    grpc.StatusCode.INTERNAL: tercet.Internal,
    grpc.StatusCode.DATA_LOSS: TercetError,
}


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_every_status_has_its_error(ask, fake, code):
    fake.failures["List"] = [Failure(code, pushback=-1)]
    with pytest.raises(TercetError) as caught:
        ask("models")
    error = caught.value
    assert type(error) is CODES[code]
    assert (error.code, error.message, error.request_id) == (code.name, "as told", REQUEST_ID)
    assert REQUEST_ID in str(error)
    assert (error.field, error.reason, error.retry_after, error.metadata, error.index) == (None, None, None, {}, None)
    assert isinstance(error.__cause__, grpc.RpcError)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_streams_fail_alike(ask, fake, code):
    fake.failures["GenerateStream"] = [Failure(code, pushback=-1)]
    with pytest.raises(TercetError) as caught:
        ask.pieces("a")
    assert type(caught.value) is CODES[code]


def test_errors_are_builtin_ones_too():
    assert issubclass(tercet.InvalidArgument, ValueError)
    assert issubclass(tercet.DeadlineExceeded, TimeoutError)
    assert issubclass(tercet.Unavailable, ConnectionError)


def test_details_are_read(ask, fake):
    details = (
        error_info("TOP_P", limit="1"),
        bad_request("sampling.top_p", "1.5 is above 1"),
        retry_info(0.25),
    )
    fake.failures["Generate"] = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "top_p", details)]
    with pytest.raises(tercet.InvalidArgument) as caught:
        ask("generate", "a", top_p=1.5)
    error = caught.value
    assert error.field == "sampling.top_p"
    assert error.violations == [tercet.FieldViolation("sampling.top_p", "1.5 is above 1")]
    assert (error.reason, error.metadata, error.retry_after) == ("TOP_P", {"limit": "1"}, 0.25)


def test_unreadable_details_do_not_hide_the_error():
    from tercet.client.statuses import from_rpc_error

    class Failed:
        code = staticmethod(lambda: grpc.StatusCode.NOT_FOUND)
        details = staticmethod(lambda: "gone")
        initial_metadata = staticmethod(lambda: None)
        trailing_metadata = staticmethod(lambda: [("grpc-status-details-bin", b"\xff\xff")])

    error = from_rpc_error(Failed)
    assert type(error) is tercet.NotFound
    assert error.message == "gone"


def test_errors_survive_pickling():
    error = tercet.ResourceExhausted("full", retry_after=1.5, request_id="x")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  as multiprocessing does
    assert (type(copy), str(copy), copy.retry_after, copy.code) == (
        tercet.ResourceExhausted,
        str(error),
        1.5,
        "RESOURCE_EXHAUSTED",
    )


def test_refused_item_of_a_list_is_raised_with_its_position(ask):
    with pytest.raises(tercet.InvalidArgument, match=r"inputs\[2\]\.text: 9 tokens, the limit is 8") as caught:
        ask("embed", ["a", "b", REFUSED, "c"])
    assert caught.value.index == 2
    assert caught.value.field == "inputs[2].text"


def test_refused_single_input_has_no_position(ask):
    with pytest.raises(tercet.InvalidArgument) as caught:
        ask("embed", REFUSED)
    assert caught.value.index is None
    assert caught.value.field == "inputs[0].text"


@pytest.mark.parametrize("before", [0, 3, 600])
def test_refused_items_are_returned_where_asked(ask, before):
    results = ask("embed", ["a"] * before + [REFUSED, "b"], errors="return")
    assert len(results) == before + 2
    assert all(np.array_equal(result, [1, 97, 97]) for result in results[:before])
    assert isinstance(results[before], tercet.InvalidArgument)
    assert results[before].field == f"inputs[{before}].text"
    assert results[before].index == before
    assert f"inputs[{before}]" in str(results[before])
    np.testing.assert_array_equal(results[-1], [1, 98, 98])


def test_all_items_refused_are_returned(ask):
    results = ask("embed", [REFUSED] * 3, errors="return")
    assert [result.index for result in results] == [0, 1, 2]


def test_first_refused_item_ends_a_long_job(ask, fake):
    fake.delay = 0.05
    with pytest.raises(tercet.InvalidArgument) as caught:
        ask("embed", ["a"] * 300 + [REFUSED] + ["a"] * 5000)
    assert caught.value.index == 300
    assert fake.stream_ended.wait(5)
    assert len(fake.attempts("Embed")) < 15


def test_a_job_that_failed_does_not_go_on_behind_its_client(fake):
    fake.delay = 0.05
    with Client(fake.address) as client:
        with pytest.raises(tercet.InvalidArgument) as caught:
            client.embed([REFUSED] + ["a"] * 5000)
        assert fake.stream_ended.wait(5)
    assert len(fake.attempts("Embed")) < 15
    assert caught.value.index == 0


async def test_an_async_job_that_failed_does_not_go_on_behind_its_client(fake):
    fake.delay = 0.05
    async with AsyncClient(fake.address) as client:
        with pytest.raises(tercet.InvalidArgument) as caught:
            await client.embed([REFUSED] + ["a"] * 5000)
        assert await asyncio.to_thread(fake.stream_ended.wait, 5)
    assert len(fake.attempts("Embed")) < 15
    assert caught.value.index == 0


BUSY = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(0.2),))
DEAD = Failure(grpc.StatusCode.UNAVAILABLE, "the engine died")


@pytest.mark.parametrize("failures", [[DEAD], [BUSY], [DEAD, BUSY, DEAD]])
def test_a_long_job_is_taken_up_where_it_broke(ask, fake, failures):
    texts = ["x" * (i % 50) for i in range(2000)]
    fake.failures["first of a stream"] = list(failures)
    start = time.monotonic()
    vectors = ask("embed", texts)
    np.testing.assert_array_equal(vectors, [vector(TextInput(text=text)) for text in texts])
    assert len(fake.attempts("EmbedStream")) == 1 + len(failures)
    assert time.monotonic() - start >= 0.2 * len(failures)


def test_answers_of_a_broken_stream_are_not_asked_for_again(ask, fake):
    fake.failures["Embed"] = [None, None, DEAD]  # the third request ends the stream
    assert ask("embed", ["a"] * 1500).shape == (1500, 3)
    sent = [len(request.inputs) for _, request, *_ in fake.attempts("Embed")]
    assert sent == [256, 256, 256, 256, 256, 256, 220]


def test_a_stream_that_ends_while_it_is_written_to_is_taken_up(ask, fake):
    cut_off = Failure(grpc.StatusCode.INTERNAL, "Internal error from Core")  # as grpc.aio has it
    fake.failures["Embed"] = [None, cut_off]
    assert ask("embed", ["a"] * 600).shape == (600, 3)
    assert len(fake.attempts("EmbedStream")) == 2


def test_a_long_job_is_given_up_when_nothing_comes(ask, fake):
    fake.failures["first of a stream"] = [DEAD] * 50
    with pytest.raises(tercet.Unavailable, match="the engine died"):
        ask("embed", ["a"] * 600)
    assert len(fake.attempts("EmbedStream")) == 4


def test_a_long_job_waits_as_long_as_the_server_asks_and_time_is_left(ask, fake):
    fake.failures["first of a stream"] = [BUSY] * 50
    with pytest.raises(tercet.ResourceExhausted) as caught:
        ask("embed", ["a"] * 600, timeout=1.5)
    assert caught.value.retry_after == 0.2
    assert 5 <= len(fake.attempts("EmbedStream")) <= 8


def test_a_long_job_is_given_up_when_its_time_is_too_short(ask, fake):
    fake.failures["first of a stream"] = [Failure(grpc.StatusCode.UNAVAILABLE, "later", (retry_info(60),))]
    with pytest.raises(tercet.Unavailable):
        ask("embed", ["a"] * 600, timeout=5)


@pytest.mark.parametrize("count", [2, 600])
def test_an_answer_with_too_few_items_is_no_answer(ask, count):
    with pytest.raises(tercet.Internal, match="items"):
        ask("embed", ["a"] * count, model="short")


@pytest.mark.parametrize("count", [1, 600])
@pytest.mark.parametrize("errors", ["raise", "return"])
def test_what_concerns_the_whole_call_is_raised(ask, count, errors):
    with pytest.raises(tercet.NotFound, match="there are: count, echo"):
        ask("embed", ["a"] * count, model="gone", errors=errors)


def test_refused_text_of_tokenize(ask):
    with pytest.raises(tercet.InvalidArgument) as caught:
        ask("tokenize", ["a", REFUSED])
    assert caught.value.index == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [("models", []), ("embed", ["a"]), ("generate", ["a"]), ("tokenize", ["a"]), ("detokenize", [[1]])],
)
def test_calls_are_made_again(ask, fake, method, arguments, code):
    rpc = {"models": "List"}.get(method, method.capitalize())
    fake.failures[rpc] = [Failure(code), Failure(code)]
    ask(method, *arguments)
    assert len(fake.attempts(rpc)) == 3


def test_calls_are_given_up_after_four_attempts(ask, fake):
    fake.failures["List"] = [Failure(grpc.StatusCode.UNAVAILABLE, pushback=1)] * 9
    with pytest.raises(tercet.Unavailable):
        ask("models")
    assert len(fake.attempts("List")) == 4


def test_pushback_is_obeyed(ask, fake):
    fake.failures["List"] = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback=400)]
    ask("models")
    (*_, first), (*_, second) = fake.attempts("List")
    assert 0.38 <= second - first <= 1.5


@pytest.mark.parametrize(("code", "pushback"), [(grpc.StatusCode.UNAVAILABLE, -1), (grpc.StatusCode.INTERNAL, None)])
def test_calls_are_not_made_again(ask, fake, code, pushback):
    fake.failures["List"] = [Failure(code, pushback=pushback)]
    with pytest.raises(TercetError):
        ask("models")
    assert len(fake.attempts("List")) == 1


def test_retries_end_with_the_timeout(ask, fake):
    fake.failures["List"] = [Failure(grpc.StatusCode.UNAVAILABLE, pushback=60_000)]
    start = time.monotonic()
    with pytest.raises((tercet.DeadlineExceeded, tercet.Unavailable)):
        ask("models", timeout=0.3)
    assert time.monotonic() - start < 5


def test_a_stream_is_started_again_but_never_repeated(ask, fake):
    fake.failures["GenerateStream"] = [Failure(grpc.StatusCode.UNAVAILABLE)]
    assert len(ask.pieces("a b")) == 2
    assert len(fake.attempts("GenerateStream")) == 2

    fake.failures["midway"] = [Failure(grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(tercet.Unavailable):
        ask.pieces("a b")
    assert len(fake.attempts("GenerateStream")) == 3


@pytest.mark.parametrize("method", ["models", "health"])
def test_timeout_of_the_call(ask, fake, method):
    fake.delay = 30
    with pytest.raises(tercet.DeadlineExceeded):
        ask(method, timeout=0.1)


def test_timeout_of_the_client(kind, fake):
    fake.delay = 30
    with pytest.raises(tercet.DeadlineExceeded):
        kind(fake.address, timeout=0.1)("models")


def test_timeout_of_a_stream(ask, fake):
    fake.delay = 0.05
    with pytest.raises(tercet.DeadlineExceeded):
        ask.pieces("a b c", max_new_tokens=1000, timeout=0.3)
    assert fake.stream_ended.wait(5)


def test_timeout_of_a_long_list(ask, fake):
    fake.delay = 0.2
    with pytest.raises(tercet.DeadlineExceeded):
        ask("tokenize", ["a"] * 1200, timeout=0.3)
    assert len(fake.attempts("Tokenize")) <= 2


@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_no_timeout(kind, fake, timeout):
    assert kind(fake.address, timeout=timeout)("health") == "SERVING"


def test_nobody_listens(kind, free_port):
    with pytest.raises(tercet.Unavailable):
        kind(f"127.0.0.1:{free_port}")("models", timeout=5)


def test_wait_ready_waits_for_a_server_to_appear(kind, free_port):
    waiting = threading.Thread(target=lambda: kind(f"127.0.0.1:{free_port}")("wait_ready", timeout=20))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    with fake_service(address=f"127.0.0.1:{free_port}"):
        waiting.join(10)
        assert not waiting.is_alive()


@pytest.mark.parametrize(("model", "service"), [(None, ""), ("broken", "model/broken")])
def test_wait_ready_waits_for_serving(ask, fake, model, service):
    fake.health[service] = "NOT_SERVING"
    timer = threading.Timer(0.3, lambda: fake.health.update({service: "SERVING"}))
    timer.start()
    ask("wait_ready", model)
    timer.join()
    assert len(fake.attempts("Check")) > 1


def test_wait_ready_says_what_it_waited_for(ask, fake):
    with pytest.raises(tercet.DeadlineExceeded, match=rf"broken at {fake.address} .* 0\.3 s: NOT_SERVING"):
        ask("wait_ready", "broken", timeout=0.3)


def test_wait_ready_in_vain(kind, free_port):
    with pytest.raises(tercet.DeadlineExceeded, match="not ready within"):
        kind(f"127.0.0.1:{free_port}")("wait_ready", timeout=0.3)


def test_wait_ready_for_a_model_that_is_not_there(ask):
    with pytest.raises(tercet.NotFound, match="model 'nobody'"):
        ask("wait_ready", "nobody")


def test_token_travels_with_every_call(kind, fake):
    ask = kind(fake.address, token="s3cret")  # noqa: S106
    ask("models")
    ask("embed", ["a"] * 300)
    ask.pieces("a")
    assert {metadata.get("authorization") for *_, metadata, _ in fake.requests} == {"Bearer s3cret"}


def test_token_never_crosses_a_network_in_the_clear():
    with pytest.raises(ValueError, match="unencrypted"):
        Client("models.example.org:50051", token="s3cret")  # noqa: S106
    with pytest.raises(ValueError, match="unencrypted"):
        AsyncClient("dns:///models.example.org:50051", token="s3cret")  # noqa: S106
    with Client("models.example.org:50051", token="s3cret", credentials=grpc.ssl_channel_credentials()):  # noqa: S106
        pass


def test_credentials_secure_the_channel(kind):
    with fake_service(credentials=grpc.local_server_credentials()) as fake:
        ask = kind(fake.address, token="s3cret", credentials=grpc.local_channel_credentials(), timeout=10)  # noqa: S106
        assert len(ask("models")) == 2
        assert len(ask.pieces("a b")) == 2
        assert {metadata.get("authorization") for *_, metadata, _ in fake.requests} == {"Bearer s3cret"}


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("localhost", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.8.0.1:1", True),
        ("dns:///localhost:1", True),
        ("dns://9.9.9.9/localhost:1", True),
        ("unix:/run/tercet.sock", True),
        ("unix-abstract:tercet", True),
        ("10.0.0.1:50051", False),
        ("localhost.example.org:1", False),
        ("unixbox:50051", False),
        ("dns:///tercet:50051", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("", False),
    ],
)
def test_local_targets(target, local):
    assert is_local(target) is local


def test_names_are_balanced_over_their_addresses():
    def policy(target):
        return "round_robin" in dict(channel_options(target))["grpc.service_config"]

    assert policy("dns:///tercet:50051")
    assert not policy("tercet:50051")


def test_balanced_clients_answer_too(kind, fake):
    port = fake.address.rpartition(":")[2]
    assert len(kind(f"dns:///localhost:{port}", timeout=10)("models")) == 2


def test_servers_that_do_not_serve_are_left_out(kind, fake):
    fake.health[""] = "NOT_SERVING"
    port = fake.address.rpartition(":")[2]
    with pytest.raises(tercet.Unavailable):
        kind(f"dns:///localhost:{port}", timeout=5)("models")
    assert not fake.attempts("List")
    fake.health[""] = "SERVING"
    assert len(kind(f"dns:///localhost:{port}", timeout=5)("models")) == 2


def test_closing_the_client_ends_its_calls(fake):
    fake.delay = 30
    client = Client(fake.address)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(tercet.Cancelled):
        client.models()


def test_cancelling_a_task_cancels_its_call(fake):
    fake.delay = 0.05

    async def run():
        async with AsyncClient(fake.address) as client:
            task = asyncio.create_task(client.embed(["a"] * 5000))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert fake.stream_ended.wait(5)
    assert len(fake.attempts("Embed")) < 20
