"""Long lists: requests that the server takes, and results in the order of the list."""

import numpy as np
import pytest

from support.fake_embedding import vector
from tercet.client import requests
from tercet.v1.types_pb2 import TextInput


@pytest.mark.parametrize("count", [256, 257, 700])
def test_long_lists_are_split_and_keep_their_order(ask, fake, count):
    texts = ["x" * (i % 50) + "é" for i in range(count)]
    result = ask("embed", texts)
    np.testing.assert_array_equal(result, [vector(TextInput(text=text)) for text in texts])
    sizes = [len(request.inputs) for _, request, *_ in fake.attempts("Embed")]
    assert sum(sizes) == count
    assert max(sizes) <= requests.BATCH_ITEMS
    assert len(fake.attempts("EmbedStream")) == (count > requests.BATCH_ITEMS)


def test_lists_of_ids_are_split_too(ask, fake):
    many = [[i, 1] for i in range(300)] + [[7] * 200_000, [8] * 200_000, []]
    result = ask("embed", many)
    np.testing.assert_array_equal(result[:, :2], [[len(ids), np.float32(sum(ids))] for ids in many])
    sizes = [len(request.token_batch.lengths) for _, request, *_ in fake.attempts("Embed")]
    assert sizes == [256, 45, 2]


def test_large_texts_are_split_by_bytes(ask, fake):
    texts = ["x" * 400_000] * 5 + ["y" * 3_000_000, "z"]
    assert ask("embed", texts)[:, 0].tolist() == [400_000] * 5 + [3_000_000, 1]
    sizes = [len(request.inputs) for _, request, *_ in fake.attempts("Embed")]
    assert sizes == [2, 2, 1, 1, 1]


def test_tokenize_splits_too(ask, fake):
    result = ask("tokenize", ["ab"] * 300)
    assert [tokenized.token_ids for tokenized in result] == [[97, 98]] * 300
    assert len(fake.attempts("Tokenize")) == 2
