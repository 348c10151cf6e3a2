"""A stream of many generations, taken apart as a client would."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from support.status import Refusal
from tercet.v1.generation_pb2 import GenerateManyEnd, GenerateManyRequest, GenerateManyResponse

if TYPE_CHECKING:
    from tercet.v1.generation_pb2 import GenerateRequest, GenerateResponse
    from tercet.v1.generation_pb2_grpc import GenerationServiceStub


class ManyStream:
    """A stream that is written to as a test goes on, and all that came of it."""

    def __init__(self, stub: GenerationServiceStub, **options: Any) -> None:
        self._requests: queue.SimpleQueue[GenerateManyRequest | None] = queue.SimpleQueue()
        self.call = stub.GenerateMany(iter(self._requests.get, None), **options)
        self.messages: list[GenerateManyResponse] = []
        self.outputs: dict[tuple[int, int], list[Any]] = {}
        """By key and index: text, tokens, finish reason, log probabilities and score."""
        self.prompts: dict[int, tuple[bool, int, list[int], int]] = {}
        """By key what its first piece says: whether the prompt was cut, the seed, and of an echoed prompt its tokens
        and how many log probabilities they have."""
        self.ends: dict[int, GenerateManyEnd] = {}

    def start(self, key: int, request: GenerateRequest) -> None:
        """Starts a generation."""
        self._requests.put(GenerateManyRequest(key=key, generate=request))

    def cancel(self, key: int) -> None:
        """Gives one up."""
        self._requests.put(GenerateManyRequest(key=key, cancel=True))

    def close(self) -> None:
        """Starts no more."""
        self._requests.put(None)

    def read(self) -> GenerateManyResponse:
        """The next message."""
        message = next(self.call)
        self.messages.append(message)
        counts = iter(message.token_counts or [1] * len(message.keys))
        ids = iter(message.token_ids)
        details = {one.piece: one for one in message.details}
        for piece, key in enumerate(message.keys):
            assert key not in self.ends, "a piece after the end"
            index = message.indexes[piece] if message.indexes else 0
            output = self.outputs.setdefault((key, index), ["", [], 0, [], None])
            assert not output[2], "a piece after the last one"
            output[0] += message.texts[piece] if message.texts else ""
            output[1] += [next(ids) for _ in range(next(counts))]
            if piece in details:
                output[2] = details[piece].finish_reason
                output[3] += details[piece].logprobs
                output[4] = details[piece].score if details[piece].HasField("score") else None
            if key not in self.prompts:
                first = details[piece]
                echoed = list(first.prompt_token_ids), len(first.prompt_logprobs)
                self.prompts[key] = (first.truncated, first.seed, *echoed)
        assert next(ids, None) is None
        for end in message.ends:
            assert end.key not in self.ends, "two ends"
            self.ends[end.key] = end
        return message

    def read_on(self) -> None:
        """Reads what comes, until the server ends the stream. Raises grpc.RpcError."""
        while True:
            try:
                self.read()
            except StopIteration:
                return

    def read_all(self) -> None:
        """Starts no more, and reads what comes of those that run. Raises grpc.RpcError."""
        self.close()
        self.read_on()

    def error(self, key: int) -> Refusal:
        """Why a generation failed."""
        return Refusal(self.ends[key].error)

    def same(self, key: int, alone: GenerateResponse) -> bool:
        """Whether a generation is what a call of its own brings, whatever was found in caches."""
        end = self.ends[key]
        outputs = [
            (output.text, list(output.token_ids), output.finish_reason, list(output.logprobs), _score(output))
            for output in alone.outputs
        ]
        mine = [tuple(output) for (of, _), output in sorted(self.outputs.items()) if of == key]
        prompt = (alone.truncated, alone.seed, list(alone.prompt_token_ids), len(alone.prompt_logprobs))
        told = (mine, self.prompts[key], end.model, _read(end), end.HasField("error"))
        return told == (outputs, prompt, alone.model, _read(alone), False)


def _read(answer: Any) -> tuple[int, int]:
    return answer.usage.prompt_tokens, answer.usage.generated_tokens


def _score(output: Any) -> float | None:
    return output.score if output.HasField("score") else None
