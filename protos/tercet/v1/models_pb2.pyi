from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Family(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAMILY_UNSPECIFIED: _ClassVar[Family]
    FAMILY_ENCODER: _ClassVar[Family]
    FAMILY_DECODER: _ClassVar[Family]
    FAMILY_SEQ2SEQ: _ClassVar[Family]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_EMBED: _ClassVar[Task]
    TASK_GENERATE: _ClassVar[Task]
    TASK_CHAT: _ClassVar[Task]
    TASK_RERANK: _ClassVar[Task]
    TASK_CLASSIFY: _ClassVar[Task]
    TASK_ZERO_SHOT: _ClassVar[Task]
    TASK_TAG: _ClassVar[Task]
    TASK_FILL_MASK: _ClassVar[Task]
    TASK_ANSWER: _ClassVar[Task]
    TASK_SCORE: _ClassVar[Task]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_RESTARTING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]
FAMILY_UNSPECIFIED: Family
FAMILY_ENCODER: Family
FAMILY_DECODER: Family
FAMILY_SEQ2SEQ: Family
TASK_UNSPECIFIED: Task
TASK_EMBED: Task
TASK_GENERATE: Task
TASK_CHAT: Task
TASK_RERANK: Task
TASK_CLASSIFY: Task
TASK_ZERO_SHOT: Task
TASK_TAG: Task
TASK_FILL_MASK: Task
TASK_ANSWER: Task
TASK_SCORE: Task
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_RESTARTING: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_DRAINING: ModelState

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "family", "architecture", "tasks", "state", "max_length", "vocab_size", "embedding_size", "dtype", "device", "parameters", "labels", "mask_token", "prompts", "generation_tasks", "languages", "quantization_error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MASK_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TASKS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: Family
    architecture: str
    tasks: _containers.RepeatedScalarFieldContainer[Task]
    state: ModelState
    max_length: int
    vocab_size: int
    embedding_size: int
    dtype: str
    device: str
    parameters: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    mask_token: str
    prompts: _containers.RepeatedScalarFieldContainer[str]
    generation_tasks: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    quantization_error: float
    def __init__(self, name: _Optional[str] = ..., family: _Optional[_Union[Family, str]] = ..., architecture: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[Task, str]]] = ..., state: _Optional[_Union[ModelState, str]] = ..., max_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., embedding_size: _Optional[int] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., parameters: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., mask_token: _Optional[str] = ..., prompts: _Optional[_Iterable[str]] = ..., generation_tasks: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., quantization_error: _Optional[float] = ...) -> None: ...
