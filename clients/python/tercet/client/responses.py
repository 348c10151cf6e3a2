"""The messages of the protocol to the SDK's results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tercet.client.results import (
    Answer,
    Answers,
    Fill,
    Generation,
    Label,
    ModelInfo,
    Output,
    Piece,
    Ranked,
    Score,
    Span,
    Tokenized,
    TokenLogprob,
    Usage,
)
from tercet.v1.generation_pb2 import FinishReason, GenerateResponse, GenerateStreamResponse
from tercet.v1.models_pb2 import Family, Model, ModelState, Task
from tercet.v1.types_pb2 import DTYPE_FLOAT32, DType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.rpc.status_pb2 import Status
    from numpy.typing import NDArray

    from tercet.v1.embedding_pb2 import EmbedResponse
    from tercet.v1.generation_pb2 import TokenLogprob as TokenLogprobMessage
    from tercet.v1.scoring_pb2 import ScoreResponse
    from tercet.v1.text_pb2 import DetokenizeResponse, TokenizeResponse
    from tercet.v1.types_pb2 import Usage as UsageMessage
    from tercet.v1.understanding_pb2 import (
        AnswerResponse,
        ClassifyResponse,
        FillMaskResponse,
        RerankResponse,
        TagResponse,
    )


def enum_name(enum: Any, value: int, prefix: str) -> Any:
    """The word of the SDK for a value of the protocol; "unspecified" for one that only a newer server knows."""
    return enum.Name(value).removeprefix(prefix).lower() if value in enum.values() else "unspecified"


def health(response: HealthCheckResponse) -> Any:
    """Whether what was asked about serves, in the words of gRPC's health protocol."""
    return HealthCheckResponse.ServingStatus.Name(response.status)


def model_info(model: Model) -> ModelInfo:
    """What the server says of one model."""
    return ModelInfo(
        name=model.name,
        family=enum_name(Family, model.family, "FAMILY_"),
        architecture=model.architecture,
        tasks=[enum_name(Task, task, "TASK_") for task in model.tasks],
        state=enum_name(ModelState, model.state, "MODEL_STATE_"),
        max_length=model.max_length,
        vocab_size=model.vocab_size,
        embedding_size=model.embedding_size if model.HasField("embedding_size") else None,
        dtype=model.dtype,
        quantization_error=model.quantization_error if model.HasField("quantization_error") else None,
        device=model.device,
        parameters=model.parameters,
        labels=list(model.labels),
        mask_token=model.mask_token or None,
        prompts=list(model.prompts),
        generation_tasks=list(model.generation_tasks),
        languages=list(model.languages),
    )


def tensor(message: Tensor) -> NDArray[np.float32]:
    """An array of its own in the machine's byte order. Raises ValueError for another element type or a wrong size."""
    if message.dtype != DTYPE_FLOAT32:
        raise ValueError(f"tensor of {enum_name(DType, message.dtype, 'DTYPE_')}; this SDK reads float32")
    return np.frombuffer(message.data, dtype="<f4").reshape(tuple(message.shape)).astype(np.float32)


def embeddings(response: EmbedResponse) -> list[NDArray[np.float32] | Status]:
    """The vector of each input, or why there is none."""
    rows = tensor(response.embeddings) if response.embeddings.data else np.empty((0, 0), np.float32)
    return [rows[item.row] if item.HasField("row") else item.error for item in response.items]


def features(response: EmbedResponse) -> list[NDArray[np.float32] | Status]:
    """The vectors of each input's tokens [tokens, embedding size], or why there are none."""
    rows = tensor(response.embeddings) if response.embeddings.data else np.empty((0, 0), np.float32)
    return [rows[item.row : item.row + item.rows] if item.HasField("row") else item.error for item in response.items]


def tokenized(response: TokenizeResponse) -> list[Tokenized | Status]:
    """The tokens of each text, or why there are none."""
    return [
        Tokenized(
            token_ids=list(item.tokenized.token_ids),
            tokens=list(item.tokenized.tokens),
            offsets=list(zip(item.tokenized.starts, item.tokenized.ends, strict=True)),
        )
        if item.HasField("tokenized")
        else item.error
        for item in response.items
    ]


def detokenized(response: DetokenizeResponse) -> list[str | Status]:
    """The text of each sequence, or why there is none."""
    return [item.text if item.HasField("text") else item.error for item in response.items]


def usage(message: UsageMessage) -> Usage:
    """What the call consumed."""
    return Usage(message.prompt_tokens, message.generated_tokens, message.cached_tokens)


def finish_reason(value: int) -> Any:
    """None while an output has not ended."""
    return enum_name(FinishReason, value, "FINISH_REASON_") if value else None


def logprobs(messages: Iterable[TokenLogprobMessage]) -> list[TokenLogprob]:
    """How likely tokens were."""
    return [TokenLogprob(token.logprob, [(top.token_id, top.logprob) for top in token.top]) for token in messages]


def generation(response: GenerateResponse) -> Generation:
    """Everything that a call generated."""
    return Generation(
        model=response.model,
        outputs=[
            Output(
                index=output.index,
                text=output.text,
                token_ids=list(output.token_ids),
                finish_reason=finish_reason(output.finish_reason),
                logprobs=logprobs(output.logprobs),
                score=output.score if output.HasField("score") else None,
            )
            for output in response.outputs
        ],
        usage=usage(response.usage),
        truncated=response.truncated,
        seed=response.seed,
        prompt_token_ids=list(response.prompt_token_ids),
        prompt_logprobs=logprobs(response.prompt_logprobs),
    )


def piece(response: GenerateStreamResponse) -> Piece:
    """What is new of one output."""
    return Piece(
        text=response.text,
        token_ids=list(response.token_ids),
        index=response.index,
        finish_reason=finish_reason(response.finish_reason),
        usage=usage(response.usage) if response.HasField("usage") else None,
        truncated=response.truncated,
        seed=response.seed,
        logprobs=logprobs(response.logprobs),
        score=response.score if response.HasField("score") else None,
        prompt_token_ids=list(response.prompt_token_ids),
        prompt_logprobs=logprobs(response.prompt_logprobs),
    )


def ranked(response: RerankResponse) -> list[Ranked]:
    """Texts in order of relevance."""
    return [Ranked(result.index, result.score, result.truncated) for result in response.results]


def labels(response: ClassifyResponse) -> list[list[Label] | Status]:
    """The labels of each input, or why there are none."""
    return [
        [Label(label.label, label.score) for label in item.labels.labels] if item.HasField("labels") else item.error
        for item in response.items
    ]


def spans(response: TagResponse) -> list[list[Span] | Status]:
    """The spans of each text, or why there are none."""
    return [
        [Span(span.label, span.start, span.end, span.text, span.score) for span in item.spans.spans]
        if item.HasField("spans")
        else item.error
        for item in response.items
    ]


def fills(response: FillMaskResponse) -> list[list[list[Fill]] | Status]:
    """The candidates for each mask of each input, or why there are none."""
    return [
        [[Fill(fill.token, fill.token_id, fill.score) for fill in mask.fills] for mask in item.filled.masks]
        if item.HasField("filled")
        else item.error
        for item in response.items
    ]


def answers(response: AnswerResponse) -> list[Answers | Status]:
    """The answers to each question, or why there are none."""
    return [
        Answers(
            (Answer(answer.text, answer.start, answer.end, answer.score) for answer in item.answers.answers),
            item.answers.no_answer_score,
        )
        if item.HasField("answers")
        else item.error
        for item in response.items
    ]


def scores(response: ScoreResponse) -> list[Score | Status]:
    """How likely each text is, or why that is unknown."""
    return [
        Score(list(item.score.token_ids), list(item.score.logprobs), item.score.total, item.score.perplexity)
        if item.HasField("score")
        else item.error
        for item in response.items
    ]
