"""Text to token ids and back. Built on `tokenizers` alone: it loads seconds sooner than transformers' wrappers."""

import re
from copy import copy
from functools import cache, cached_property
from pathlib import Path

import tokenizers

from workers.protocols import Refused

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = " Lyo, naïve  spaces,\n\n\ttabs, 漢字 and 👩🏽‍🚀 <b>tags</b>"


class Tokenizer:
    """A Gemma-style tokenizer: pieces of text with `▁` for a space, and bytes for what has no piece.

    What a person typed never becomes a control token: `encode("<end_of_turn>")` is seven ordinary tokens. Control
    tokens are had by name from `control`. Safe to use from many threads.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.encode_special_tokens = True  # control tokens in a text are text; else a user could end their own turn
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._control = {token.content: number for number, token in added.items() if token.special}
        self._control_ids = frozenset(self._control.values())
        if missing := {"<bos>", "<eos>"} - self._control.keys():
            names = " and ".join(sorted(missing))
            raise Refused("unsupported_tokenizer", f"the model's tokenizer has no {names}, which Gemma's has")
        self.bos = self.control("<bos>")
        probe = self.encode(PROBE)
        if b"".join(map(self.token_bytes, probe)).decode() != PROBE:
            raise Refused("unsupported_tokenizer", "the model's tokenizer does not spell its tokens as Gemma's does")

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` as it stands: nothing is put before or after it. About linear in its length.

        Other threads run meanwhile: `encode` would keep the interpreter's lock for the whole text.
        """
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def remembering(self) -> "Tokenizer":
        """The same tokenizer, which reads no text twice; for as long as the texts are needed."""
        twin = copy(self)
        twin.encode = cache(self.encode)  # type: ignore[method-assign]
        return twin

    @cached_property
    def longest_token(self) -> int:
        """How many bytes of UTF-8 a token stands for at most."""
        pieces = self._backend.get_vocab().keys() - self._control.keys()
        return max(len(piece.replace("▁", " ").encode()) for piece in pieces if not BYTE.fullmatch(piece))

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`; control tokens have none, broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that `token` stands for: perhaps a part of a character, nothing for a control token."""
        piece = self._backend.id_to_token(token)
        if piece is None or token in self._control_ids:
            return b""
        if byte := BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace("▁", " ").encode()

    def control(self, name: str) -> int:
        """The id of a control token such as `<end_of_turn>`; raises KeyError where the vocabulary has none."""
        return self._control[name]
