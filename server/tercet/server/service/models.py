"""ModelService: which models there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.control import State
from tercet.v1.models_pb2 import (
    Family,
    GetModelRequest,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    ModelState,
)

if TYPE_CHECKING:
    from tercet.server.service.registry import Registry, ServedModel
    from tercet.server.service.rpc import Call

_FAMILIES = {
    "encoder": Family.FAMILY_ENCODER,
    "decoder": Family.FAMILY_DECODER,
    "seq2seq": Family.FAMILY_SEQ2SEQ,
}
_STATES = {
    State.LOADING: ModelState.MODEL_STATE_LOADING,
    State.READY: ModelState.MODEL_STATE_READY,
    State.RESTARTING: ModelState.MODEL_STATE_RESTARTING,
    State.FAILED: ModelState.MODEL_STATE_FAILED,
}


class ModelServicer:
    """The methods of tercet.v1.ModelService."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def list(self, request: ListModelsRequest, call: Call) -> ListModelsResponse:
        """Every model, sorted by name."""
        models = sorted(self._registry.models.items())
        return ListModelsResponse(models=[self._describe(model) for _, model in models])

    async def get(self, request: GetModelRequest, call: Call) -> Model:
        """One model."""
        model = self._registry.get(request.name, "name")
        call.model = model.name
        return self._describe(model)

    def _describe(self, model: ServedModel) -> Model:
        state = _STATES[model.engine.state]
        if state == ModelState.MODEL_STATE_READY and not model.ready:
            state = ModelState.MODEL_STATE_LOADING
        described = Model(name=model.name, state=ModelState.MODEL_STATE_DRAINING if self._registry.draining else state)
        info, text, tasks = model.engine.info, model.text, model.tasks or ()
        if info is not None:
            described.MergeFrom(
                Model(
                    family=_FAMILIES[info.family],
                    architecture=info.architecture,
                    tasks=[f"TASK_{task.upper()}" for task in tasks],
                    max_length=model.max_length,
                    vocab_size=info.vocab_size,
                    embedding_size=info.embedding_size if "embed" in tasks else None,
                    dtype=info.dtype,
                    quantization_error=info.quantization_error,
                    device=info.device,
                    parameters=info.parameters,
                )
            )
        if text is not None:
            described.MergeFrom(
                Model(
                    labels=text.labelled(info.labels).labels if info and {"classify", "tag"} & set(tasks) else (),
                    mask_token=text.mask[0] if text.mask is not None and "fill_mask" in tasks else "",
                    prompts=sorted(text.embedding.prompts),
                    generation_tasks=sorted(text.tasks),
                    languages=text.languages.codes if text.languages is not None else (),
                )
            )
        return described
