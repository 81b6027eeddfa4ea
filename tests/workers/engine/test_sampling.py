"""A row's token depends on its logits and `(seed, position)`, and follows the distribution that was asked for."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.engine.sampling import (
    SPAN,
    SampledRow,
    adjusted,
    draw_from_all,
    draw_from_likeliest,
    first_above,
    likeliest,
    logsumexp,
    sample,
    uniform,
)
from workers.protocols import Sampling

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def row(sampling: Sampling, prompt: Iterable[int] = (), answer: Iterable[int] = ()) -> SampledRow:
    return SampledRow(sampling, list(prompt), list(answer))


def at(position: int, sampling: Sampling) -> SampledRow:
    return SampledRow(sampling, range(position), ())


def frequencies(sampling: Sampling, draws: int = 2000) -> list[float]:
    tokens = sample(LOGITS.expand(draws, -1), [at(position, sampling) for position in range(draws)])
    return [round(tokens.count(token) / draws, 2) for token in range(4)]


def least_kept(logits: Tensor, sampling: Sampling) -> float:
    """The least logit that may be drawn, found by sorting everything, with some room for rounding."""
    ranked, _ = logits.double().sort(descending=True)
    probabilities = (ranked / sampling.temperature)[: sampling.top_k or None].softmax(-1)
    nucleus = probabilities.cumsum(-1) - probabilities < sampling.top_p + 1e-5
    last = int((nucleus & (probabilities >= sampling.min_p * probabilities[0])).sum()) - 1
    return float(ranked[last]) - 1e-5


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1, temperature=0), [1, 0, 0, 0]),
        (Sampling(1, temperature=1e-30), [1, 0, 0, 0]),
        (Sampling(1, temperature=0.5), [0.72, 0.18, 0.07, 0.03]),
        (Sampling(1, top_k=2), [0.67, 0.33, 0, 0]),
        (Sampling(1, top_k=9), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1, top_p=0.74), [0.67, 0.33, 0, 0]),
        (Sampling(1, top_p=0.76), [0.56, 0.28, 0.17, 0]),
        (Sampling(1, top_p=0), [1, 0, 0, 0]),
        (Sampling(1, top_k=3, top_p=0.8), [0.67, 0.33, 0, 0]),  # of the three left, two hold 0.83
        (Sampling(1, min_p=0.25), [0.56, 0.28, 0.17, 0]),
        (Sampling(1, min_p=1), [1, 0, 0, 0]),
        (Sampling(1, min_p=0.25, top_p=0.74), [0.67, 0.33, 0, 0]),
        (Sampling(1, temperature=2, min_p=0.5), [0.44, 0.31, 0.24, 0]),
    ],
)
def test_tokens_follow_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.04)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 7, SPAN, 3 * SPAN, 40_000]),
    spread=st.sampled_from([0.01, 1, 4]),
    temperature=st.sampled_from([0.3, 1, 2]),
    top_k=st.sampled_from([0, 1, 5, 300]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 1]),
    min_p=st.sampled_from([0, 0.01, 0.6]),
)
def test_only_what_is_kept_is_drawn(seed: int, size: int, spread: float, **choice: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    sampling = Sampling(1, **choice)
    drawn = sample(logits.expand(50, -1), [at(position, sampling) for position in range(50)])
    assert float(logits[drawn].min()) >= least_kept(logits, sampling)


def test_a_wide_nucleus_is_drawn_from_evenly() -> None:
    flat = torch.zeros(400, 20000)
    tokens = sample(flat, [at(position, Sampling(1, top_p=0.9)) for position in range(400)])
    assert len(set(tokens)) > 380
    assert 8_000 < sum(tokens) / len(tokens) < 12_000


def test_a_token_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0)).bfloat16().float()  # with many ties
    choices = [
        {"temperature": 0},
        {},
        {"top_k": 9},
        {"top_p": 0.99},
        {"min_p": 0.1},
        {"temperature": 0, "repetition_penalty": 1.5},
    ]
    rows = [row(Sampling(1, seed=seed, **choice), range(40), range(seed)) for seed, choice in enumerate(choices * 2)]
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [rows[i]])[0] for i in range(12)]
    assert together[0] == int(logits[0].argmax())
    low = logits.bfloat16()  # the same numbers, as a model may give them
    assert sample(low, rows) == together
    assert likeliest(low, together, 3) == likeliest(logits, together, 3)
    torch.testing.assert_close(logsumexp(low), logits.logsumexp(-1))


@pytest.mark.parametrize("spread", [0.1, 3])
def test_an_accelerators_batch_draws_what_single_rows_draw(spread: float) -> None:
    """There the rows of a method go together, however many spans each of them needs."""
    logits = torch.randn(5, 300 * SPAN, generator=torch.Generator().manual_seed(2)) * spread
    choices = [
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"top_k": 200, "top_p": 0.9},
        {"top_p": 0.99, "min_p": 1e-4},
    ]
    rows = [row(Sampling(1, seed=seed, **choice)) for seed, choice in enumerate(choices)]
    assert draw_from_likeliest(logits, rows).tolist() == sample(logits, rows)
    rows = [row(Sampling(1, seed=seed, temperature=seed + 0.5)) for seed in range(5)]
    assert draw_from_all(logits, rows).tolist() == sample(logits, rows)


@pytest.mark.parametrize(
    ("penalties", "expected"),
    [
        ({"repetition_penalty": 2}, [2, -2, 1.5, -2, 0]),
        ({"presence_penalty": 0.5}, [4, -1, 2.5, -1.5, 0]),
        ({"frequency_penalty": 0.25}, [4, -1, 2.5, -1.25, 0]),
        ({"repetition_penalty": 2, "presence_penalty": -1, "frequency_penalty": 0.25}, [2, -2, 2, -1.25, 0]),
    ],
)
def test_penalties_change_what_is_likeliest(penalties: dict[str, float], expected: list[float]) -> None:
    logits = torch.tensor([[4.0, -1.0, 3.0, -1.0, 0.0]])
    before = logits.clone()
    penalized = row(Sampling(1, temperature=0, **penalties), prompt=[0, 1, 1], answer=[2, 3, 2])
    assert adjusted(logits, [penalized])[0].tolist() == expected
    assert sample(logits, [penalized]) == [expected.index(max(expected))]
    assert logits.equal(before)


def test_random_numbers_are_the_same_in_every_process() -> None:
    assert uniform(7, 3) == pytest.approx(uniform(7 + 2**64, 3))
    assert [round(uniform(7, position), 6) for position in range(3)] == [0.872073, 0.082843, 0.014108]
    assert uniform(-1, 0) != uniform(0, 0)


def test_a_position_counts_from_the_start_of_the_prompt() -> None:
    logits = torch.zeros(1, 1000)
    assert sample(logits, [row(Sampling(1), [1, 2, 3])]) == sample(logits, [row(Sampling(1), [1], [2, 3])])
    assert sample(logits, [row(Sampling(1), [1])]) != sample(logits, [row(Sampling(1), [1], [2])])


def test_a_token_of_no_weight_is_never_drawn() -> None:
    """Not even where the draw falls on the border of the total, as rounding can have it."""
    weights = torch.tensor([[0.0, 0.0, 0.1, 0.7, 0.0, 0.0]], dtype=torch.float64)
    running = weights.cumsum(-1)
    for target, index in ((0.0, 2), (0.1, 3), (0.8, 3), (float(running[0, -1]), 3), (0.9, 3)):
        assert first_above(running, torch.tensor([[target]], dtype=torch.float64)).tolist() == [[index]]


@pytest.mark.parametrize("count", [0, 2, 3 * SPAN])
def test_log_probabilities_are_of_the_untempered_distribution(count: int) -> None:
    logits = torch.randn(3, 40 * SPAN + 1, generator=torch.Generator().manual_seed(1))
    expected, ids = logits.log_softmax(-1).topk(count)
    for index, (own, top) in enumerate(likeliest(logits, [0, 1, 40 * SPAN], count)):
        assert own == pytest.approx(float(logits.log_softmax(-1)[index, [0, 1, 40 * SPAN][index]]), abs=1e-5)
        assert [token for token, _ in top] == ids[index].tolist()
        assert [value for _, value in top] == pytest.approx(expected[index].tolist(), abs=1e-5)
