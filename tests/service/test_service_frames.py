"""Frames: however a socket cuts what was sent, the messages come out whole and in order."""

import random

import pytest

from tercet.server import frames, wire

SENT = [
    wire.Rejected(id=id, reason="internal", message="m" * size) for id, size in enumerate((0, 1, 3000, 2, 70_000, 5))
]


@pytest.mark.parametrize("most", [1, 3, 5, 1000, 1 << 16, 1 << 20])
def test_messages_come_out_whole_however_they_are_cut(most):
    data = b"".join(map(frames.encode, SENT))
    chance = random.Random(most)
    reader, bodies, first = frames.FrameReader(), [], 0
    while first < len(data):
        last = first + chance.randint(1, most)
        bodies += map(bytes, reader.feed(data[first:last]))
        first = last
    assert bodies == [frames.encode(message)[4:] for message in SENT]


def test_a_frame_beyond_the_limit_is_refused_before_it_comes():
    reader = frames.FrameReader()
    [body] = reader.feed(frames.encode(SENT[0]) + b"\xff\xff")
    assert bytes(body) == frames.encode(SENT[0])[4:]
    with pytest.raises(ValueError, match=f"frame of {0xFFFFFFFF} bytes exceeds the limit of {frames.MAX_FRAME}"):
        reader.feed(b"\xff\xff")


def test_token_ids_that_are_no_whole_ids_are_refused():
    ids = wire.token_ids([5, -1])
    embeds = wire.Embeds(id=0, lengths=wire.token_ids([2]), token_ids=ids, pooling="cls", normalize=True)
    data = frames.encode(embeds)[4:]
    assert frames.to_engine_decoder.decode(data) == embeds
    cut = data.replace(b"\xc4\x08" + ids.tobytes(), b"\xc4\x07" + ids.tobytes()[:7])
    assert cut != data
    with pytest.raises(ValueError, match="token_ids"):
        frames.to_engine_decoder.decode(cut)
