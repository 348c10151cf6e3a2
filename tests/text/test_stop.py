"""Stop strings against the naive way: look at the whole text after every character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.server.text import StopMatcher

characters = st.sampled_from("aab\u00e9\U0001f600")  # few, so that matches, and beginnings of matches, are many
stops = st.lists(st.text(characters, min_size=1, max_size=5), max_size=4)
pieces = st.lists(st.text(characters, max_size=6), max_size=12)


def naive(text: str, stop: list[str]) -> tuple[str, bool]:
    """The match that completes first ends the text; of several, the longest."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))], True
    return text, False


@given(stops, pieces)
def test_pieces_give_what_the_whole_text_gives(stop: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stop)
    emitted, stopped = "", False
    for count, piece in enumerate(pieces, start=1):
        text, stopped = matcher.push(piece)
        emitted += text
        # no later than it can be known, and nothing that may still belong to a match
        so_far, stopped_so_far = naive("".join(pieces[:count]), stop)
        assert stopped == stopped_so_far
        assert so_far.startswith(emitted)
        if not stopped:
            held = so_far[len(emitted) :]
            assert held == "" or any(s.startswith(held) for s in stop)
            assert not any(s.startswith(so_far[at:]) for s in stop for at in range(len(emitted)))
    emitted += matcher.finish()
    assert (emitted, stopped) == naive("".join(pieces), stop)


def test_a_match_across_pieces() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Hello.\n") == ("Hello.", False)
    assert matcher.push("\nUs") == ("", False)
    assert matcher.push("er: hi") == ("\n\nUser:"[:0], True)
    assert matcher.push("more") == ("", True)
    assert matcher.finish() == ""


def test_a_beginning_that_comes_to_nothing_is_given_back() -> None:
    matcher = StopMatcher(["aab"])
    assert [matcher.push(c)[0] for c in "aaac"] == ["", "", "a", "aac"]


def test_a_beginning_that_never_ends_is_given_back_at_the_end() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("text ST") == ("text ", False)
    assert matcher.finish() == "ST"


def test_no_stop_strings_hold_nothing_back() -> None:
    matcher = StopMatcher([])
    assert matcher.push("anything") == ("anything", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher(["a", ""])
