"""The architectures there are, one small file each: tables of config keys and tensor names, and a spec made of them."""

from tercet.server.models.architectures.architecture import Architecture
from tercet.server.models.architectures.bert import BERT
from tercet.server.models.architectures.llama import LLAMA
from tercet.server.models.architectures.t5 import T5

ARCHITECTURES = {architecture.name: architecture for architecture in (BERT, LLAMA, T5)}

__all__ = ["ARCHITECTURES", "Architecture"]
