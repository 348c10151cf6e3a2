"""GPT-2's spelling of bytes as printable characters.

From the encoder released with Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": printable
Latin-1 stands for itself, every other byte for the next character from U+0100.
"""

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)

BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def spelled(token: str) -> bool:
    """Whether `token` is written in this alphabet alone."""
    return BYTE_OF.keys() >= set(token)


def spell(data: bytes) -> str:
    """`data` as the vocabulary of a byte-level tokenizer writes it."""
    return "".join(CHARACTER_OF[byte] for byte in data)


def unspell(token: str) -> bytes:
    """The bytes of a token; one that is not written in the alphabet is taken as it stands."""
    return bytes(BYTE_OF[character] for character in token) if spelled(token) else token.encode()
