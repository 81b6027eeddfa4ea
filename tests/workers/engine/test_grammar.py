"""JSON that follows its schema whatever the model says: here it says random things."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from workers.engine.grammar import Grammar, Grammars
from workers.engine.sampling import SampledRow, sample
from workers.models.load import LoadedModel
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused, Sampling

STOP_IDS = frozenset({1, 106})
STRING = re.compile(r'"(\\.|[^"\\])*"')
QUIZ = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "maxLength": 12},
        "choices": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2, "maxItems": 3},
        "answer": {"type": "integer", "minimum": 0, "maximum": 2},
        "level": {"enum": ["easy", "hard"]},
        "hint": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/hint"}]},
    },
    "required": ["question", "choices", "answer", "level", "hint"],
    "additionalProperties": False,
    "$defs": {"hint": {"type": "object", "properties": {"at": {"type": "number"}}, "additionalProperties": False}},
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "integer"},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "array", "items": {"type": ["boolean", "null"]}, "maxItems": 4},
    {"const": {"naïve key": ["👩🏽‍🚀", 1.5]}},
    QUIZ,
]


@pytest.fixture(scope="module")
def grammars(gemma: LoadedModel) -> Grammars:
    tokenizer = gemma.tokenizer
    return Grammars(tokenizer.token_bytes, tokenizer.encode, gemma.model.config.vocab_size, STOP_IDS)


def allowed(grammar: Grammar, vocabulary: int = 262144) -> set[int]:
    mask = np.zeros((1, vocabulary // 32), dtype=np.int32)
    grammar.fill(mask, 0)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def answer(grammar: Grammar, logits: torch.Tensor, sampling: Sampling) -> tuple[list[int], bool]:
    """The tokens before the stop token, and whether the answer is complete; logits: [steps, vocabulary]."""
    tokens: list[int] = []
    for step in range(sampling.max_tokens):
        [token] = sample(logits[step % len(logits)][None], [SampledRow(sampling, [2], tokens, grammar)])
        grammar.advance(token)
        if token in STOP_IDS:
            return tokens, True
        tokens.append(token)
        if grammar.done:
            return tokens, True
    return tokens, False


def is_compact(text: str) -> bool:
    return not re.search(r"\s", STRING.sub("", text))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), schema=st.sampled_from(SCHEMAS), sharpness=st.sampled_from([1, 8]))
def test_random_logits_make_json_of_the_schema(
    grammars: Grammars, tokenizer: Tokenizer, seed: int, schema: dict[str, Any], sharpness: int
) -> None:
    logits = torch.randn(4, 262144, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits[:, tokenizer.encode('"')] += 4 * sharpness  # else free strings seldom end
    logits[:, tokenizer.encode("}")] += 4 * sharpness
    tokens, complete = answer(grammars.compile(json.dumps(schema)), logits, Sampling(80, seed=seed, top_k=seed % 3))
    text = tokenizer.decode(tokens)
    assert all(tokenizer.token_bytes(token) for token in tokens)
    assert complete or schema == {"type": "object"} or schema == {"type": "integer"}
    if complete:
        Draft202012Validator(schema).validate(json.loads(text))
        assert is_compact(text)


def test_the_models_own_words_become_json_of_the_schema(grammars: Grammars, gemma: LoadedModel) -> None:
    """Also the proof that the model and its tokenizer agree on the size of the vocabulary."""
    grammar = grammars.compile(json.dumps(QUIZ))
    prompt = gemma.tokenizer.encode("A quiz of one question about addition:\n")
    tokens: list[int] = []
    while not grammar.done and len(tokens) < 100:
        with torch.inference_mode():
            logits = gemma.model(torch.tensor([[2, *prompt, *tokens]]), logits_to_keep=1).logits[:, 0]
        tokens += sample(logits, [SampledRow(Sampling(100, temperature=0), prompt, tokens, grammar)])
        grammar.advance(tokens[-1])
    Draft202012Validator(QUIZ).validate(json.loads(gemma.tokenizer.decode(tokens)))


def test_a_row_with_a_grammar_does_not_touch_the_others(grammars: Grammars) -> None:
    logits = torch.randn(3, 262144, generator=torch.Generator().manual_seed(3))
    free = SampledRow(Sampling(9, temperature=0), [2], [])
    bound = SampledRow(Sampling(9, seed=1), [2], [], grammars.compile('{"type": "object"}'))
    tokens = sample(logits, [free, bound, free])
    assert [tokens[0], tokens[2]] == logits[[0, 2]].argmax(-1).tolist()
    assert tokens[1] in allowed(grammars.compile('{"type": "object"}'))


def test_json_ends_with_a_stop_token_only_where_it_may(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.compile('{"type": "integer"}')
    assert not allowed(grammar) & STOP_IDS
    grammar.advance(*tokenizer.encode("12"))
    assert allowed(grammar) >= STOP_IDS and not grammar.done
    grammar.advance(106)
    assert grammar.done
    closed = grammars.compile('{"enum": ["yes", "no"]}')
    closed.advance(*tokenizer.encode('"yes"'))
    assert closed.done and allowed(closed) == STOP_IDS


def test_no_control_token_is_a_part_of_a_string(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.compile('{"type": "string"}')
    grammar.advance(*tokenizer.encode('"'))
    inside = allowed(grammar)
    assert len(inside) > 250_000
    assert all(tokenizer.token_bytes(token) for token in inside)
    text = '"<end_of_turn>\\n<start_of_turn>model"'  # as text they are harmless
    grammar.advance(*tokenizer.encode(text[1:]))
    assert grammar.done


def test_delivered_tokens_bring_a_grammar_to_where_it_was(grammars: Grammars, tokenizer: Tokenizer) -> None:
    delivered = tokenizer.encode('{"question":"1+1?","choices":["2"')
    first, resumed = grammars.compile(json.dumps(QUIZ)), grammars.compile(json.dumps(QUIZ))
    for token in delivered:
        allowed(first)
        first.advance(token)
    resumed.advance(*delivered)
    assert allowed(resumed) == allowed(first)
    resumed.advance(*tokenizer.encode(',"3"],"answer":0,"level":"easy","hint":null}'))
    assert resumed.done and not first.done


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {"type": "string"}}, '["not"]'),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, '["uniqueItems"]'),
        ({"not": {}, "x-guidance": {"lenient": True}}, '["not"]'),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "#/$defs/x"}, "/$defs/x"),
        ({"$ref": "#"}, "cannot be followed"),
        ({"enum": []}, "Unsatisfiable"),
        ([], "invalid"),
    ],
)
def test_what_a_schema_cannot_have_is_named(grammars: Grammars, schema: Any, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)) as refused:
        grammars.compile(json.dumps(schema))
    assert refused.value.code == "unsupported_schema"


def test_a_schemas_own_options_do_not_bring_whitespace_back(grammars: Grammars, tokenizer: Tokenizer) -> None:
    options = {"whitespace_flexible": True, "whitespace_pattern": "[ ]{3}", "item_separator": " , "}
    schema = {"const": {"a": [1, 2]}, "x-guidance": options}
    tokens, complete = answer(grammars.compile(json.dumps(schema)), torch.zeros(1, 262144), Sampling(40))
    assert (tokenizer.decode(tokens), complete) == ('{"a":[1,2]}', True)


def test_a_schema_that_proves_too_much_is_refused_on_the_way(grammars: Grammars) -> None:
    grammar = grammars.compile(json.dumps({"type": "string", "pattern": "^(a|b|[a-z]{1,500}){1,500}$"}))
    logits = torch.randn(4, 262144, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Refused, match="cannot be followed: lexer error: too many expressions"):
        answer(grammar, logits, Sampling(60))
