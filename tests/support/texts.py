"""Texts that tokenizers are compared on."""

import random

SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_start", "[CLS]", "[SEP]", "[MASK]", "[PAD]",
    "[UNK]",
    "[sep]", "<s>", "</s>", "<unk>", "<pad>", "<mask>",
)  # fmt: skip
PIECES = (
    "the", "Quick", "brown fox", "don't", "I'm", "they've", "we'll", "HELLO", "e.g.", "U.S.A.", "co-operate",
    "naïve café",
    "Zürich", "straße", "Œuvre", "ﬁancé", "e\u0301clair", "Пётр", "Ελλάδα", "שלום", "مرحبا",
    "नमस्ते", "สวัสดี", "你好，世界",
    "日本語テキスト", "한국어", "ＦＵＬＬ", "İstanbul", "ǅ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "😀",
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "1", "42", "2024", "3.14159",
    "1,000,000", "0x1F", "٣٤٥", "²³", "½", "Ⅷ", "١٢", "1e-5", "+49 30 1234", "def f(x):\n    return x ** 2",
    "if (a != b) { c++; }",
    "<div class=\"x\">&amp;</div>", "SELECT * FROM t WHERE a='b';", "https://example.org/a?b=c#d", "a_b-c.d",
    "\\n\\t", "...",
    "?!", "—", "“quoted”", "$5", "50%", "#tag", "@name", "\u200b", "\ufeff", "\u00ad", "\u2028", "\x00", "\x01",
    "\x7f", "\ufffd",
    "\U0010ffff", "",
)  # fmt: skip
GAPS = ("", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2009", "      ", "\v", "\f")


def texts(count: int, seed: int = 0) -> list[str]:
    """`count` texts: pieces and special tokens alone and amid spaces, then mixtures of them, then random characters."""
    random_ = random.Random(seed)
    made = [
        before + piece + after for piece in (*PIECES, *SPECIAL) for before, after in (("", ""), (" ", " "), ("a", "b"))
    ]
    while len(made) < count:
        pool = random_.choice((PIECES, PIECES, (*PIECES, *SPECIAL)))
        made.append("".join(random_.choice(pool) + random_.choice(GAPS) for _ in range(random_.randint(1, 12))))
        made.append("".join(chr(_code_point(random_)) for _ in range(random_.randint(1, 30))))
    return made[:count]


def _code_point(random_: random.Random) -> int:
    """Any but the surrogates, which are not text."""
    limit = random_.choice((0x80, 0x100, 0x800, 0x3000, 0xD800, 0x20000, 0x110000))
    point = random_.randrange(limit)
    return 0x20 if 0xD800 <= point < 0xE000 else point
