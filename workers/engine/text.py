"""Tokens to text while they arrive: whole characters only, and nothing that may yet turn out to be a stop string."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from workers.protocols import Delta, TokenLogprob


def token_logprob(token: int, data: bytes, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    """What is told of a token that stands for `data`; as in a text, NUL is U+FFFD."""
    data = data.replace(b"\0", "\ufffd".encode())
    return TokenLogprob(token, data.decode(errors="replace"), tuple(data), logprob, top)


class Pending(NamedTuple):
    token: int
    logprob: TokenLogprob | None
    end: int | None  # where its text ends in the held text; None inside a character


class TextStream:
    """The text of one answer.

    Tokens are settled in whole: a token that ends in half a character, or in what may begin a stop string, waits with
    its text until later tokens decide. What is settled never changes, so a stream can be resumed after any delta.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...] = ()) -> None:
        self.text = ""  # settled
        self.stopped = False  # by a stop string, which is not part of the text
        self._token_bytes = token_bytes
        self._stop = stop
        self._held = ""  # decoded, not settled
        self._pending: list[Pending] = []
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Delta | None:
        """Take the next token; returns what it settles, if that has any text."""
        self._held += self._decode(self._token_bytes(token))
        inside_character = bool(self._decoder.getstate()[0])
        self._pending.append(Pending(token, logprob, None if inside_character else len(self._held)))

        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            self._cut_logprobs()
            return self._settle(len(self._pending), len(self._held))

        safe = min((self._possible_start(stop) for stop in self._stop), default=len(self._held))
        for count in range(len(self._pending), 0, -1):
            end = self._pending[count - 1].end
            if end is not None and end <= safe:
                return self._settle(count, end)
        return None

    def finish(self) -> Delta | None:
        """Settle all there is: no more tokens come. Half a character becomes U+FFFD."""
        if not self.stopped:
            self._held += self._decode(b"", final=True)
        return self._settle(len(self._pending), len(self._held))

    def resume(self, delivered: Iterable[int]) -> None:
        """Start after tokens whose text an earlier stream has settled."""
        for token in delivered:
            self.push(token)
        if not self.stopped:  # only an answer's end is delivered inside a character
            self._held += self._decode(b"", final=True)
        self._settle(len(self._pending), len(self._held))
        self._pending.clear()

    def _decode(self, data: bytes, final: bool = False) -> str:
        """NUL, which Postgres cannot keep in a text, becomes U+FFFD too."""
        return self._decoder.decode(data, final).replace("\0", "\ufffd")

    def _cut_logprobs(self) -> None:
        """Tell nothing of tokens that begin past the held text, and of one that reaches past it what is before."""
        begins, told = 0, b""  # where the character begins that tokens are inside of, and their bytes
        last = len(self._pending) - 1  # in which the stop string ends
        for index, item in enumerate(self._pending):
            logprob = item.logprob
            if begins >= len(self._held):
                logprob = None
            elif logprob is not None and (index == last or (item.end or 0) > len(self._held)):
                cuts = (bytes(logprob.bytes[:length]) for length in range(len(logprob.bytes), -1, -1))
                same = (cut for cut in cuts if (told + cut).decode(errors="replace") == self._held[begins:])
                data = next(same, b"")
                logprob = replace(logprob, text=data.decode(errors="replace"), bytes=tuple(data))
            self._pending[index] = item._replace(logprob=logprob)
            if item.end is not None:
                begins, told = item.end, b""
            elif logprob is not None:
                told += bytes(logprob.bytes)

    def _settle(self, count: int, end: int) -> Delta | None:
        text = self._held[:end]
        if not text:
            return None
        settled, rest = self._pending[:count], self._pending[count:]
        self.text += text
        self._held = self._held[end:]
        self._pending = [item._replace(end=item.end and item.end - end) for item in rest]
        return Delta(
            token_ids=tuple(item.token for item in settled),
            text=text,
            logprobs=tuple(item.logprob for item in settled if item.logprob is not None),
        )

    def _possible_start(self, stop: str) -> int:
        """Where the longest end of the held text begins that is a beginning of `stop`; its length if there is none."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return len(self._held) - length
        return len(self._held)
