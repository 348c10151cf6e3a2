"""Messages of `wire` as bytes on a socket, and back.

A frame is a 4-byte little-endian length followed by one msgpack-encoded message. The sockets of a process that the
supervisor starts lie in a folder of that process alone.
"""

from __future__ import annotations

import msgspec

from tercet.server import wire

CONTROL = "control"
"""The supervisor's socket in the folder of a process: the process connects."""
REQUESTS = "requests"
"""An engine's socket in its folder: front ends connect."""
MAX_FRAME = 1 << 30  # bytes; a longer length prefix is a protocol error
_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder(enc_hook=wire.encode_ids)
to_engine_decoder = msgspec.msgpack.Decoder(wire.ToEngine, dec_hook=wire.decode_ids)
from_engine_decoder = msgspec.msgpack.Decoder(wire.FromEngine)
to_front_end_decoder = msgspec.msgpack.Decoder(wire.ToFrontEnd)


def encode(message: msgspec.Struct) -> bytes:
    """One frame: length prefix and message. Raises ValueError past MAX_FRAME."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"message of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a byte stream into message bodies; feed it what the socket gave."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completed, in order. Raises ValueError on a length past MAX_FRAME."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "little")
            if length > MAX_FRAME:
                raise ValueError(f"frame of {length} bytes exceeds the limit of {MAX_FRAME}")
            end = start + _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH_BYTES : end]))
            start = end
        del self._buffer[:start]
        return bodies
