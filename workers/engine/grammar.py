"""JSON that follows a schema: which tokens may come next in an answer. The parser is llguidance's.

The JSON is compact, for small models lose themselves in free whitespace, and no control token is ever a part of it.
"""

from collections.abc import Callable
from threading import Lock

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from workers.protocols import Refused

# Of one mask some 10 ms, for all rows of a batch wait for it; of one answer's states some 50 MB.
LIMITS = LLParserLimits(step_lexer_fuel=60_000, step_max_items=20_000, max_lexer_states=25_000, verbose_errors=False)

# Sets of tokens whose masks llguidance computes once, for some 15 MB each: the inside of strings. Of its own, the first
# is white space, which compact JSON has none of.
SLICES = LLTokenizer.json_slices()[1:]


class Grammar:
    """How far one answer is in its JSON. It belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._check()

    @property
    def done(self) -> bool:
        """Whether the JSON is complete and nothing but a stop token can follow."""
        return self._matcher.is_stopped()

    def fill(self, allowed: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next, one bit each; stop tokens may where the JSON may end.

        allowed: [rows, vocabulary / 32 rounded up]. Takes some 10 µs, at most some 10 ms (`LIMITS`). Where the parser
        gives up, stop tokens alone are allowed, and `advance` raises.
        """
        llguidance.numpy.fill_next_token_bitmask(self._matcher, allowed, row)

    def advance(self, *tokens: int) -> None:
        """Take the answer's next tokens: the one just chosen, or those that an earlier attempt delivered.

        Raises `Refused` where the schema proves to be more than the parser can follow.
        """
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = self._matcher.get_error().removesuffix("\n<non-verbose/>")
            raise Refused("unsupported_schema", f"the JSON schema cannot be followed: {error}")


class Grammars:
    """Compiles schemas for one vocabulary, on the caller's thread: some ms, after `prepare`.

    Without the interpreter's lock, and bounded by llguidance, but for `multipleOf`, which the web side bounds.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        vocabulary: int,
        stop_ids: frozenset[int],
    ) -> None:
        """token_bytes: nothing for control tokens. encode: how the model is used to see text divided, where the schema
        leaves no choice of text."""
        self._tokens = token_bytes
        self._encode = encode
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._tokenizer: LLTokenizer | None = None
        self._lock = Lock()

    def prepare(self) -> LLTokenizer:
        """The vocabulary as llguidance sorts it, once: that takes a second or two."""
        with self._lock:
            if self._tokenizer is None:
                vocabulary = _Vocabulary([self._tokens(token) for token in range(self._vocabulary)], self._encode)
                self._tokenizer = LLTokenizer(
                    vocabulary,
                    eos_token=sorted(self._stop_ids),
                    slices=SLICES,
                )
                vocabulary.tokens = []  # it has copied them
            return self._tokenizer

    def compile(self, schema: str) -> Grammar:
        """The grammar of a JSON schema, at its beginning. Raises `Refused`, which says what is wrong with it."""
        tokenizer = self.prepare()
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                schema,
                overrides={  # they win over what a schema says under "x-guidance"
                    "whitespace_flexible": False,
                    "whitespace_pattern": None,
                    "item_separator": ",",
                    "key_separator": ":",
                    "lenient": False,
                    "coerce_one_of": False,
                },
            )
        except ValueError as error:
            raise Refused("unsupported_schema", f"the JSON schema is invalid: {error}") from error
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
        matcher.compute_bitmask()  # finds a schema that nothing satisfies, and much of what later masks need
        return Grammar(matcher)


class _Vocabulary(TokenizerWrapper):
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokens: list[bytes], encode: Callable[[str], list[int]]) -> None:
        self.tokens = tokens
        self.special_token_ids: list[int] = []  # their bytes are empty: no text has them
        self.bos_token_id = None
        self.eos_token_id = 0  # `eos_token` stands in for it
        self.is_tokenizer_wrapper = True
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
