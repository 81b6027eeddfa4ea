"""Tokens become text without half characters and without stop strings, and a stream can be resumed anywhere."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.engine.text import TextStream, token_logprob
from workers.protocols import Delta

PIECES = [b"a", b"b", b" <", b"<", b"end", b">", b"nd>", "é".encode(), b"\xf0\x9f", b"\x98\x80", b"\xff", b"", b"ab"]
PIECES += [b"b<\xf0", "\ufffd<end>".encode(), b"ab\xe2"]
pieces = PIECES.__getitem__


def stream_of(tokens: list[int], stop: tuple[str, ...]) -> tuple[TextStream, list[Delta]]:
    stream, deltas = TextStream(pieces, stop), []
    for token in tokens:
        deltas.append(stream.push(token))
        if stream.stopped:
            break
    deltas.append(stream.finish())
    return stream, [delta for delta in deltas if delta]


def test_half_a_character_waits_for_its_other_half() -> None:
    stream = TextStream(pieces)
    assert stream.push(PIECES.index(b"\xf0\x9f")) is None
    assert stream.push(PIECES.index(b"\x98\x80")).text == "😀"


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    stream, deltas = stream_of([0, PIECES.index(b"\xf0\x9f")], ())
    assert [delta.text for delta in deltas] == ["a", "�"]
    assert stream.text == "a�"


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    stream, deltas = stream_of([0, 2, 4, 5, 1], ("<end>",))  # "a", " <", "end", ">"
    assert stream.stopped
    assert stream.text == "a "
    assert [delta.text for delta in deltas] == ["a", " "]


def test_what_only_looked_like_a_stop_string_is_let_go() -> None:
    stream = TextStream(pieces, ("<end>",))
    assert stream.push(PIECES.index(b"<")) is None
    assert stream.push(PIECES.index(b"a")) == Delta((3, 0), "<a")


def test_tokens_are_let_go_as_soon_as_no_stop_string_can_begin_in_them() -> None:
    stream = TextStream(pieces, ("<end>",))
    assert stream.push(PIECES.index(b" <")) is None
    assert stream.push(PIECES.index(b"<")) == Delta((2,), " <")


@pytest.mark.parametrize("stop", [("<end>",), ("ab", "b<"), ("aa",), ()])
@given(tokens=st.lists(st.integers(0, len(PIECES) - 1), max_size=25))
def test_after_any_delta_the_text_is_that_of_the_tokens(stop: tuple[str, ...], tokens: list[int]) -> None:
    whole, deltas = stream_of(tokens, stop)
    assert whole.text == "".join(delta.text for delta in deltas)
    assert not any(string in whole.text for string in stop)
    for count in range(len(deltas) + 1):
        seen = [token for delta in deltas[:count] for token in delta.token_ids]
        resumed = TextStream(pieces, stop)
        resumed.resume(seen)
        assert resumed.text == "".join(delta.text for delta in deltas[:count])
        rest = [resumed.push(token) for token in tokens[len(seen) :] if not resumed.stopped]
        rest.append(resumed.finish())
        assert [delta for delta in rest if delta] == deltas[count:]


def test_a_nul_which_no_database_text_can_hold_becomes_a_replacement_character() -> None:
    stream = TextStream(lambda token: bytes([token]))
    assert stream.push(0) == Delta((0,), "\ufffd")


@pytest.mark.parametrize("stop", [("<end>",), ("b<",), ()])
@given(tokens=st.lists(st.integers(0, len(PIECES) - 1), max_size=25))
@example(tokens=[8, 12, 3])  # half a character that no other half follows, before the stop string
def test_the_bytes_of_log_probabilities_join_to_the_text(stop: tuple[str, ...], tokens: list[int]) -> None:
    """Also inside characters, and where a stop string begins inside a token."""
    stream, deltas = TextStream(pieces, stop), []
    for token in tokens:
        deltas.append(stream.push(token, token_logprob(token, pieces(token), -1.0)))
        if stream.stopped:
            break
    deltas.append(stream.finish())
    told = [item for delta in deltas if delta for item in delta.logprobs]
    assert b"".join(bytes(item.bytes) for item in told).decode(errors="replace") == stream.text


def test_a_token_that_is_half_a_character_tells_its_bytes() -> None:
    told = token_logprob(9, b"\xf0\x9f", -1.0)
    assert (told.text, told.bytes) == ("\ufffd", (0xF0, 0x9F))
    assert token_logprob(0, b"a\0", -1.0).bytes == (0x61, 0xEF, 0xBF, 0xBD)  # as in the text
