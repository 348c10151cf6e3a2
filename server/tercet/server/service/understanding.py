"""UnderstandingService: what a text says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.service.answering import Answerer
from tercet.server.service.classification import Classifier
from tercet.server.service.masks import MaskFiller
from tercet.server.service.reranking import Reranker
from tercet.server.service.tagging import Tagger

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry
    from tercet.server.service.sequences import Sequencer


class UnderstandingServicer:
    """The methods of tercet.v1.UnderstandingService, each by the one who knows how."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self.rerank = Reranker(registry, sequencer, metrics).rerank
        self.classify = Classifier(registry, sequencer, settings, metrics).classify
        self.tag = Tagger(registry, sequencer, settings, metrics).tag
        self.fill_mask = MaskFiller(registry, sequencer, metrics).fill_mask
        self.answer = Answerer(registry, sequencer, settings, metrics).answer
