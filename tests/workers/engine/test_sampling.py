"""A row's token depends on its logits and `(seed, position)`, and follows the distribution that was asked for."""

import pytest
import torch

from workers.engine.sampling import likeliest, sample, uniform
from workers.protocols import Sampling

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def frequencies(sampling: Sampling, draws: int = 4000) -> list[float]:
    tokens = sample(LOGITS.expand(draws, -1), [sampling] * draws, range(draws))
    return [round(tokens.count(token) / draws, 2) for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1, temperature=0), [1, 0, 0, 0]),
        (Sampling(1, top_k=2), [0.67, 0.33, 0, 0]),
        (Sampling(1, top_p=0.75), [0.67, 0.33, 0, 0]),
        (Sampling(1, top_p=0.76), [0.56, 0.28, 0.17, 0]),
        (Sampling(1, top_p=0), [1, 0, 0, 0]),
        (Sampling(1, top_k=3, top_p=0.8), [0.67, 0.33, 0, 0]),  # of the three left, two hold 0.83
        (Sampling(1, temperature=0.5), [0.72, 0.18, 0.07, 0.03]),
    ],
)
def test_tokens_follow_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.025)


def test_a_token_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    samplings = [
        Sampling(1, seed=seed, top_k=k, top_p=p) for seed, (k, p) in enumerate([(0, 1), (9, 1), (0, 0.99)] * 2)
    ]
    together = sample(logits, samplings, range(6))
    alone = [sample(logits[row : row + 1], [samplings[row]], [row])[0] for row in range(6)]
    assert together == alone


def test_a_wide_nucleus_is_looked_for_beyond_the_first_candidates() -> None:
    flat = torch.zeros(400, 20000)
    tokens = sample(flat, [Sampling(1, top_p=0.9)] * 400, range(400))
    assert len(set(tokens)) > 380


def test_random_numbers_are_the_same_in_every_process() -> None:
    assert uniform(7, 3) == pytest.approx(uniform(7 + 2**64, 3))
    assert [round(uniform(7, position), 6) for position in range(3)] == [0.872073, 0.082843, 0.014108]
    assert uniform(-1, 0) != uniform(0, 0)


def test_log_probabilities_are_of_the_untempered_distribution() -> None:
    [(own, top)] = likeliest(LOGITS[None], [2], 2)
    assert own == pytest.approx(LOGITS[2].item())
    assert top == [(0, pytest.approx(LOGITS[0].item())), (1, pytest.approx(LOGITS[1].item()))]
