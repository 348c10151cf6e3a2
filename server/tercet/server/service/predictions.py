"""What is asked of heads that classify, tag or answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.service.registry import Target
    from tercet.server.service.rpc import Call

# Their decoder starts from the source's last token, not from one that the checkpoint names.
_STARTS_FROM_LAST = ("mbart",)


def prediction(target: Target, token_ids: wire.TokenIds, type_ids: wire.TokenIds | None, call: Call) -> wire.Predict:
    """The question for one sequence, at least one token.

    A seq2seq decoder reads the source moved on by one, and a head that reads one token reads where the source ends; a
    decoder's head reads the last token that is not padding (transformers' ForSequenceClassification classes).
    """
    decoder_ids = wire.token_ids()
    last = None
    if target.info.family == "seq2seq":
        from_last = target.info.architecture in _STARTS_FROM_LAST
        start = token_ids[-1:] if from_last else wire.token_ids(target.text.generation.decoder_start_ids)
        decoder_ids = start + token_ids[:-1]
        last = _last(token_ids, lambda id: id in target.text.generation.eos_ids)
    elif target.info.family == "decoder":
        last = _last(token_ids, lambda id: id != target.text.padding_id)
    return wire.Predict(
        id=target.channel.new_id(),
        token_ids=token_ids,
        type_ids=type_ids,
        decoder_ids=decoder_ids,
        last=last,
        deadline=call.deadline,
    )


def _last(token_ids: Sequence[int], wanted: Callable[[int], bool]) -> int | None:
    return next((i for i in reversed(range(len(token_ids))) if wanted(token_ids[i])), None)
