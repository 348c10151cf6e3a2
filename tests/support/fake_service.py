"""A service of our own in this process, to test clients against: it answers by rule, fails as told, and takes notes."""

from __future__ import annotations

import re
import threading
import time
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.fake_embedding import ids_of, inputs_of, vector
from support.fake_many import FakeMany
from tercet.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    text_pb2,
    text_pb2_grpc,
    understanding_pb2,
    understanding_pb2_grpc,
)
from tercet.v1.types_pb2 import DTYPE_FLOAT32, Tensor, TextInput, Usage

REQUEST_ID = "5f1d0000deadbeef"
REFUSED = "refuse this"  # an input that is refused, its neighbours not
DIMENSIONS = 3


@dataclass
class Failure:
    """How a method fails, once."""

    code: grpc.StatusCode
    message: str = "as told"
    details: tuple = ()
    pushback: int | None = None
    """Milliseconds, as grpc-retry-pushback-ms has them."""


def status(code, message, *details):
    result = Status(code=code.value[0], message=message)
    for detail in details:
        result.details.add().Pack(detail)
    return result


def bad_request(path, description):
    return BadRequest(field_violations=[BadRequest.FieldViolation(field=path, description=description)])


def retry_info(seconds):
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return RetryInfo(retry_delay=delay)


def error_info(reason, **metadata):
    return ErrorInfo(reason=reason, domain="tercet", metadata=metadata)


@dataclass
class Fake(
    embedding_pb2_grpc.EmbeddingServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    scoring_pb2_grpc.ScoringServiceServicer,
    text_pb2_grpc.TextServiceServicer,
    understanding_pb2_grpc.UnderstandingServiceServicer,
    health_pb2_grpc.HealthServicer,
):
    """Embeds as `vector` does, tokenizes to code points, generates the prompt's words again and again.

    Labels, spans and fills are made of the words of a text, scores of their lengths.
    """

    address: str = ""
    requests: list = field(default_factory=list)
    """(method, request, metadata, time) of every attempt, retries included."""
    failures: dict = field(default_factory=dict)
    """Method -> Failures of its next attempts; None lets one pass."""
    health: dict = field(
        default_factory=lambda: {"": "SERVING", "model/echo": "SERVING", "model/broken": "NOT_SERVING"}
    )
    delay: float = 0.0
    """Seconds before a unary answer, and between the pieces of a stream."""
    stream_ended: threading.Event = field(default_factory=threading.Event)
    pieces_sent: int = 0
    started: list = field(default_factory=list)
    """(key, request) of every generation on a stream of many."""
    most_running: int = 0
    """The most that ran on one at once."""
    peers: list = field(default_factory=list)
    """The connection of each attempt."""
    time_left: list = field(default_factory=list)
    """What was left of each attempt's deadline, in seconds; years where there is none."""

    def attempts(self, method):
        return [entry for entry in self.requests if entry[0] == method]

    def _attempt(self, method, request, context):
        metadata = dict(context.invocation_metadata())
        self.requests.append((method, request, metadata, time.monotonic()))
        trailers = [("x-request-id", REQUEST_ID)]
        self.peers.append(context.peer())
        self.time_left.append(context.time_remaining())
        failure = self.failures[method].pop(0) if self.failures.get(method) else None
        if failure is not None:
            if failure.details:
                packed = status(failure.code, failure.message, *failure.details)
                trailers.append(("grpc-status-details-bin", packed.SerializeToString()))
            if failure.pushback is not None:
                trailers.append(("grpc-retry-pushback-ms", str(failure.pushback)))
            context.set_trailing_metadata(trailers)
            context.abort(failure.code, failure.message)
        context.set_trailing_metadata(trailers)
        end = time.monotonic() + self.delay
        while time.monotonic() < end and context.is_active():
            time.sleep(0.005)

    def Check(self, request, context):
        self._attempt("Check", request, context)
        if request.service not in self.health:
            context.abort(grpc.StatusCode.NOT_FOUND, "")  # as gRPC's own servicer does
        return health_pb2.HealthCheckResponse(status=self.health[request.service])

    def Watch(self, request, context):
        said = None
        while context.is_active():
            if said != self.health[request.service]:
                said = self.health[request.service]
                yield health_pb2.HealthCheckResponse(status=said)
            time.sleep(0.01)

    def List(self, request, context):
        self._attempt("List", request, context)
        echo = models_pb2.Model(
            name="echo",
            family="FAMILY_DECODER",
            architecture="llama",
            tasks=["TASK_GENERATE", "TASK_CHAT"],
            state="MODEL_STATE_READY",
            max_length=64,
            vocab_size=0x110000,
            dtype="fp8",
            quantization_error=0.026,
            device="cpu",
            parameters=7,
            generation_tasks=["summarization"],
            languages=["de", "en"],
        )
        count = models_pb2.Model(name="count", family=3, tasks=[1, 99], state=1, embedding_size=DIMENSIONS)
        count.mask_token, count.labels[:], count.prompts[:] = "[MASK]", ["bad", "good"], ["query"]
        return models_pb2.ListModelsResponse(models=[count, echo])

    def Embed(self, request, context):
        self._attempt("Embed", request, context)
        if request.model == "gone":
            context.abort(grpc.StatusCode.NOT_FOUND, "no model 'gone'; there are: count, echo")
        items, rows = [], []
        for index, text_input in enumerate(inputs_of(request)):
            if text_input.text == REFUSED:
                items.append(embedding_pb2.EmbedItem(error=_refusal(f"inputs[{index}].text")))
                continue
            every = request.pooling == embedding_pb2.POOLING_NONE
            vectors = [vector(TextInput(text=word)) for word in text_input.text.split()] if every else []
            vectors = vectors or [vector(text_input)]
            items.append(embedding_pb2.EmbedItem(row=len(rows), rows=len(vectors)))
            rows += vectors
        if request.model == "short":
            items.pop()
        data = np.array(rows, "<f4")
        embeddings = Tensor(dtype=DTYPE_FLOAT32, shape=[len(rows), DIMENSIONS], data=data.tobytes())
        return embedding_pb2.EmbedResponse(model="count", embeddings=embeddings, items=items)

    def EmbedStream(self, requests, context):
        context.add_callback(self.stream_ended.set)
        self._attempt("EmbedStream", None, context)
        for number, request in enumerate(requests):
            if request.model == "gone":
                refusal = status(grpc.StatusCode.NOT_FOUND, "no model 'gone'; there are: count, echo")
                yield embedding_pb2.EmbedStreamResponse(error=refusal)
            elif number == 0 and self.failures.get("first of a stream"):
                failure = self.failures["first of a stream"].pop(0)
                refusal = status(failure.code, failure.message, *failure.details)
                yield embedding_pb2.EmbedStreamResponse(error=refusal)
            else:
                yield embedding_pb2.EmbedStreamResponse(response=self.Embed(request, context))

    def Generate(self, request, context):
        self._attempt("Generate", request, context)
        sampling = request.sampling
        outputs = [
            generation_pb2.Generation(
                index=index,
                text=f"{_prompt(request)}#{index}",
                token_ids=[index, 1, 2],
                finish_reason=generation_pb2.FINISH_REASON_LENGTH,
                logprobs=_logprobs(3) if sampling.logprobs else [],
                score=-0.5 - index if sampling.num_beams > 1 else None,
            )
            for index in range(sampling.n if sampling.HasField("n") else 1)
        ]
        return generation_pb2.GenerateResponse(
            model="echo",
            outputs=outputs,
            usage=Usage(prompt_tokens=5, generated_tokens=3 * len(outputs), cached_tokens=4),
            seed=9,
            prompt_token_ids=[8, 9] if sampling.echo else [],
            prompt_logprobs=_logprobs(1) if sampling.echo and sampling.logprobs else [],
        )

    def GenerateStream(self, request, context):
        context.add_callback(self.stream_ended.set)
        self._attempt("GenerateStream", request, context)
        words = _prompt(request).split(" ")
        total = request.sampling.max_new_tokens if request.sampling.HasField("max_new_tokens") else len(words)
        for position in range(total):
            last = position == total - 1
            yield generation_pb2.GenerateStreamResponse(
                text=words[position % len(words)] + ("" if last else " "),
                token_ids=[position],
                finish_reason="FINISH_REASON_LENGTH" if last else None,
                usage=Usage(prompt_tokens=5, generated_tokens=total, cached_tokens=4) if last else None,
                seed=9,
                logprobs=_logprobs(1) if request.sampling.logprobs else [],
            )
            self.pieces_sent += 1
            if self.failures.get("midway"):
                failure = self.failures["midway"].pop()
                context.abort(failure.code, failure.message)
            time.sleep(self.delay)

    def GenerateMany(self, requests, context):
        context.add_callback(self.stream_ended.set)
        self._attempt("GenerateMany", None, context)
        yield from FakeMany(self, self._outputs, self._refusal).read(requests).answer(context)

    def _outputs(self, request):
        """The words of each output of a generation."""
        words = _prompt(request).split(" ")
        total = request.sampling.max_new_tokens if request.sampling.HasField("max_new_tokens") else len(words)
        n = request.sampling.n if request.sampling.HasField("n") else 1
        return [[words[position % len(words)] for position in range(total)]] * n

    def _refusal(self, request):
        """Why a generation of a stream fails: as told, or since its text is refused."""
        if self.failures.get("generation") and (failure := self.failures["generation"].pop(0)):
            return status(failure.code, failure.message, *failure.details)
        return _refusal("input.text") if request.input.text == REFUSED else None

    def Rerank(self, request, context):
        self._attempt("Rerank", request, context)
        order = sorted(range(len(request.texts)), key=lambda i: -len(request.texts[i]))
        ranked = [understanding_pb2.Ranked(index=i, score=len(request.texts[i])) for i in order]
        return understanding_pb2.RerankResponse(results=ranked[: request.top_k if request.HasField("top_k") else None])

    def Classify(self, request, context):
        self._attempt("Classify", request, context)
        names = request.zero_shot.labels or ["good", "bad"]
        items = []
        for index, item in enumerate(request.inputs):
            length = float(len(item.input.text + item.pair) or len(ids_of(item.input.token_ids)))
            labels = [understanding_pb2.Label(label=name, score=length) for name in names]
            items.append(
                understanding_pb2.ClassifyItem(error=_refusal(f"inputs[{index}].text"))
                if item.input.text == REFUSED
                else understanding_pb2.ClassifyItem(labels=understanding_pb2.Labels(labels=labels))
            )
        return understanding_pb2.ClassifyResponse(items=items)

    def Tag(self, request, context):
        self._attempt("Tag", request, context)
        items = []
        for index, text in enumerate(request.texts):
            spans = [
                understanding_pb2.Span(label="WORD", start=m.start(), end=m.end(), text=m[0], score=1)
                for m in re.finditer(r"\S+", text)
            ]
            items.append(
                understanding_pb2.TagItem(error=_refusal(f"texts[{index}]"))
                if text == REFUSED
                else understanding_pb2.TagItem(spans=understanding_pb2.Spans(spans=spans))
            )
        return understanding_pb2.TagResponse(items=items)

    def FillMask(self, request, context):
        self._attempt("FillMask", request, context)
        candidates = request.targets.values or ["a", "b"]
        fills = [understanding_pb2.Fill(token=token, token_id=i, score=0.5) for i, token in enumerate(candidates)]
        masks = [[understanding_pb2.Fills(fills=fills)] * item.text.count("[MASK]") for item in request.inputs]
        filled = [understanding_pb2.FilledMasks(masks=mask) for mask in masks]
        return understanding_pb2.FillMaskResponse(
            items=[understanding_pb2.FillMaskItem(filled=masks) for masks in filled]
        )

    def Answer(self, request, context):
        self._attempt("Answer", request, context)
        items = []
        for index, question in enumerate(request.questions):
            start = max(0, question.context.find(question.question))
            end = start + len(question.question)
            found = [understanding_pb2.Answer(text=question.question, start=start, end=end, score=0.75)]
            items.append(
                understanding_pb2.AnswerItem(error=_refusal(f"questions[{index}].question"))
                if question.question == REFUSED
                else understanding_pb2.AnswerItem(
                    answers=understanding_pb2.Answers(answers=found, no_answer_score=0.25)
                )
            )
        return understanding_pb2.AnswerResponse(items=items)

    def Score(self, request, context):
        self._attempt("Score", request, context)
        items = []
        for item in request.inputs:
            ids = [ord(c) for c in item.source.text + item.text.text]
            scored = scoring_pb2.Score(token_ids=ids, logprobs=[-1] * len(ids), total=-len(ids), perplexity=2.5)
            items.append(scoring_pb2.ScoreItem(score=scored))
        return scoring_pb2.ScoreResponse(items=items)

    def Tokenize(self, request, context):
        self._attempt("Tokenize", request, context)
        return text_pb2.TokenizeResponse(model="echo", items=[_tokenized(text) for text in request.texts])

    def Detokenize(self, request, context):
        self._attempt("Detokenize", request, context)
        texts = ["".join(map(chr, ids_of(sequence))) for sequence in request.sequences]
        return text_pb2.DetokenizeResponse(items=[text_pb2.DetokenizeItem(text=text) for text in texts])


def _refusal(path):
    message = f"{path}: 9 tokens, the limit is 8"
    return status(grpc.StatusCode.INVALID_ARGUMENT, message, bad_request(path, message))


def _logprobs(count):
    top = [generation_pb2.TopLogprob(token_id=4, logprob=-0.25)]
    return [generation_pb2.TokenLogprob(logprob=-1.5, top=top)] * count


def _prompt(request):
    if request.HasField("chat"):
        return " ".join(f"{message.role}:{message.content}" for message in request.chat.messages)
    return request.input.text or " ".join(map(str, ids_of(request.input.token_ids)))


def _tokenized(text):
    if text == REFUSED:
        return text_pb2.TokenizeItem(error=status(grpc.StatusCode.INVALID_ARGUMENT, "texts: too long"))
    count = len(text)
    return text_pb2.TokenizeItem(
        tokenized=text_pb2.Tokenized(
            token_ids=[ord(c) for c in text], tokens=list(text), starts=range(count), ends=range(1, count + 1)
        )
    )


@contextmanager
def fake_service(address="127.0.0.1:0", credentials=None):
    """Serves a `Fake` until left."""
    fake = Fake()
    server = grpc.server(futures.ThreadPoolExecutor(16))
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(fake, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(fake, server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(fake, server)
    text_pb2_grpc.add_TextServiceServicer_to_server(fake, server)
    understanding_pb2_grpc.add_UnderstandingServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
