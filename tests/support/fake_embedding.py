"""What the fake service is asked to embed, and what it makes of it."""

from array import array
from itertools import accumulate, pairwise

import numpy as np

from tercet.v1.types_pb2 import TextInput, TokenIds


def ids_of(token_ids):
    """What the client sent, packed."""
    return list(array("I", token_ids.packed))


def inputs_of(request):
    """What is to be embedded, whichever way it came."""
    ends = list(accumulate((4 * length for length in request.token_batch.lengths), initial=0))
    packed = [request.token_batch.packed[first:last] for first, last in pairwise(ends)]
    return [*request.inputs, *(TextInput(token_ids=TokenIds(packed=ids)) for ids in packed)]


def vector(text_input):
    """What the fake embeds to: the number of characters or ids, their sum and the first."""
    values = [ord(c) for c in text_input.text] or ids_of(text_input.token_ids)
    return np.array([len(values), sum(values), values[0] if values else 0], np.float32)
