"""Chooses the next token of each row. A row's choice depends on its own logits and `(seed, position)` alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.protocols import Sampling

CANDIDATES = 1024  # top_p seldom needs more, and sorting the whole vocabulary is slow
SPAN = 512


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter-based generator: the same in every process, batch and attempt."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random()


def sample(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """The next token of each row. logits: [rows, vocabulary], float32; positions: of the tokens in their sequences."""
    chosen = logits.argmax(-1)
    precision = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no doubles
    plain: list[int] = []
    cut: list[int] = []
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            (cut if sampling.top_k or sampling.top_p < 1 else plain).append(row)
    for rows, draw in ((plain, draw_from_all), (cut, draw_from_likeliest)):
        if rows:
            picked = [samplings[row] for row in rows]
            draws = [uniform(samplings[row].seed, positions[row]) for row in rows]
            temperature = logits.new_tensor([sampling.temperature for sampling in picked])
            scaled = logits[rows] / temperature.clamp(min=1e-4)[:, None]
            chosen[rows] = draw(scaled, picked, torch.tensor(draws, dtype=precision, device=logits.device))
    return chosen.tolist()


def draw_from_all(scaled: Tensor, _: Sequence[Sampling], draws: Tensor) -> Tensor:
    """Inverse of the cumulative distribution over the whole vocabulary. Returns [rows]."""
    return invert(scaled.softmax(-1), draws)


def draw_from_likeliest(scaled: Tensor, samplings: Sequence[Sampling], draws: Tensor) -> Tensor:
    """The same over the `top_k` likeliest tokens and, of those, the fewest that hold `top_p` of their probability."""
    vocabulary = scaled.shape[-1]
    top_k = torch.tensor([min(s.top_k or vocabulary, vocabulary) for s in samplings], device=scaled.device)[:, None]
    top_p = scaled.new_tensor([s.top_p for s in samplings])[:, None]
    total = scaled.logsumexp(-1, keepdim=True)
    count = min(vocabulary, max(CANDIDATES, *(s.top_k for s in samplings)))
    while True:
        values, ids = scaled.topk(count)
        values = values.masked_fill(torch.arange(count, device=scaled.device) >= top_k, -torch.inf)
        probabilities = (values - torch.where(top_k < vocabulary, values.logsumexp(-1, keepdim=True), total)).exp()
        before = probabilities.cumsum(-1) - probabilities
        if count == vocabulary or bool(((before[:, -1:] >= top_p) | (top_k <= count)).all()):
            break
        count = min(vocabulary, 8 * count)
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    probabilities[:, 0] = probabilities[:, 0].clamp(min=1e-30)  # top_p of 0 keeps the likeliest
    return ids.gather(-1, invert(probabilities, draws)[:, None])[:, 0]


def invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The index at which the cumulative sum first exceeds `draws` of the total. probabilities: [rows, n].

    First by the sums of spans, then inside one span: a running sum over the whole vocabulary takes ten times longer.
    """
    rows = torch.arange(len(draws), device=draws.device)
    spans = pad(probabilities, (0, -probabilities.shape[-1] % SPAN)).reshape(len(draws), -1, SPAN)
    sums = spans.sum(-1, dtype=draws.dtype)
    cumulative = sums.cumsum(-1)
    targets = draws * cumulative[:, -1]
    span = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0].clamp(max=sums.shape[-1] - 1)
    targets -= cumulative[rows, span] - sums[rows, span]
    inside = spans[rows, span].cumsum(-1, dtype=draws.dtype)
    return span * SPAN + torch.searchsorted(inside, targets[:, None], right=True)[:, 0].clamp(max=SPAN - 1)


def likeliest(logits: Tensor, chosen: Sequence[int], count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of each row the chosen token's natural-log probability, and the `count` likeliest tokens with theirs."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(count, logits.shape[-1]))
    tops = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return list(zip(own, tops, strict=True))
