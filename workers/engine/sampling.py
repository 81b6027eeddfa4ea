"""Chooses the next token of each row. A row's choice depends on its own logits and `(seed, position)` alone.

In this order: penalties, grammar, temperature, `top_k`, `top_p` of what that leaves, `min_p`. A token as likely as the
last one kept stays too.

The logits of 32 rows of Gemma are 17 MB, or 33 in float32, so every pass over them counts. They are looked at in spans:
one pass finds the peak of each, and the k likeliest tokens lie in the k spans with the highest peaks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import llguidance.numpy
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from workers.engine.grammar import Grammar
from workers.protocols import Sampling

SPAN = 128  # tokens
CANDIDATES = 128  # spans to rank at first for top_p; a flat distribution needs more
COLDEST = 1e-4  # temperature; below it float32 overflows
BYTE_BANS = torch.zeros(256, 8).masked_fill_((torch.arange(256)[:, None] >> torch.arange(8)) & 1 == 0, -torch.inf)


class SampledRow(NamedTuple):
    """What a choice depends on beside the logits. `answer` is what there is of it; `grammar` stands at its end."""

    sampling: Sampling
    prompt: Sequence[int]
    answer: Sequence[int]
    grammar: Grammar | None = None

    @property
    def penalized(self) -> bool:
        s = self.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0

    @property
    def method(self) -> Callable[[Tensor, Sequence["SampledRow"]], Tensor] | None:
        """How to choose from the row's own logits; None where the greatest of the model's is the choice."""
        s = self.sampling
        if s.temperature > 0:
            return draw_from_likeliest if s.top_k or s.top_p < 1 or s.min_p > 0 else draw_from_all
        return take_likeliest if self.grammar or self.penalized else None


def sample(logits: Tensor, rows: Sequence[SampledRow]) -> list[int]:
    """The next token of each row. logits: [rows, vocabulary], as the model gave them; they are not changed."""
    chosen = greatest(logits)
    for method in (take_likeliest, draw_from_all, draw_from_likeliest):
        group = [index for index, row in enumerate(rows) if row.method is method]
        if logits.is_cpu:  # one at a time: what is made of a row then stays in the processor's cache
            for i in group:
                chosen[i] = method(adjusted(logits[i : i + 1].float(), [rows[i]]), [rows[i]])
        elif group:
            own = [rows[i] for i in group]
            chosen[group] = method(adjusted(logits[group].float(), own), own)
    return chosen.tolist()


def likeliest(logits: Tensor, chosen: Sequence[int], count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of each row the chosen token's natural-log probability, and the `count` likeliest tokens with theirs.

    logits: [rows, vocabulary], as the model gave them.
    """
    logits = logits.float()
    spans = in_spans(logits, -torch.inf)
    taken = spans.amax(-1).topk(min(count, spans.shape[1])).indices
    values, places = pick(spans, taken).topk(min(count, logits.shape[-1]))
    total = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None]) - total
    ids, logprobs = tokens_at(taken, places).tolist(), (values - total).tolist()
    return [(mine, list(zip(*top, strict=True))) for mine, *top in zip(own[:, 0].tolist(), ids, logprobs, strict=True)]


def logsumexp(logits: Tensor) -> Tensor:
    """Of each row, in float32: [rows]."""
    if logits.is_cpu:  # one at a time, as in `sample`
        return torch.stack([row.float().logsumexp(-1) for row in logits])
    return logits.float().logsumexp(-1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter-based generator: the same in every process, batch and attempt."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random()


# --- a row's own logits ---


def adjusted(logits: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    """With the rows' penalties, and minus infinity for what a grammar forbids. logits: [rows, vocabulary]."""
    if any(row.penalized for row in rows):
        logits = logits.clone()
        for own, row in zip(logits, rows, strict=True):
            penalize(own, row)
    if any(row.grammar for row in rows):
        allowed = llguidance.numpy.allocate_token_bitmask(len(rows), logits.shape[-1])  # everything
        for index, row in enumerate(rows):
            if row.grammar:
                row.grammar.fill(allowed, index)
        octets = torch.from_numpy(allowed.view(np.uint8)).to(logits.device).int()
        logits = logits + embedding(octets, BYTE_BANS.to(logits.device)).flatten(1)[:, : logits.shape[-1]]
    return logits


def penalize(logits: Tensor, row: SampledRow) -> None:
    """Repetition over prompt and answer, presence and frequency over the answer, as in vLLM. logits: [vocabulary]."""
    s = row.sampling
    if s.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique([*row.prompt, *row.answer])).to(logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    said, counts = np.unique(np.array(row.answer, dtype=np.int64), return_counts=True)
    costs = torch.from_numpy(s.presence_penalty + s.frequency_penalty * counts)
    logits[torch.from_numpy(said).to(logits.device)] -= costs.to(logits)


# --- the methods. logits: [rows, vocabulary]; each returns [rows] ---


def take_likeliest(logits: Tensor, _: Sequence[SampledRow]) -> Tensor:
    return greatest(logits)


def draw_from_all(logits: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    highest = in_spans(logits, -torch.inf).amax((1, 2))[:, None]
    return draw(relative(logits, highest, rows), rows)


def draw_from_likeliest(logits: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    """Ranks the tokens of the spans with the highest peaks, and of more only while tokens beyond them could be kept."""
    samplings = [row.sampling for row in rows]
    top_k = torch.tensor([[s.top_k] for s in samplings], device=logits.device)
    top_p = torch.tensor([[s.top_p] for s in samplings], device=logits.device, dtype=precise(logits))
    min_p = logits.new_tensor([[s.min_p] for s in samplings])
    spans = in_spans(logits, -torch.inf)
    peaks = spans.amax(-1)
    highest = peaks.amax(-1, keepdim=True)
    total = torch.full_like(top_p, torch.inf)
    if any(s.top_p < 1 and not s.top_k for s in samplings):
        sums = span_sums(relative(logits, highest, rows))
        total = torch.where(top_p < 1, sums.sum(-1, keepdim=True), total)
    count = max(s.top_k + 1 if s.top_k else CANDIDATES for s in samplings)
    while True:
        heights, taken = peaks.topk(min(count, peaks.shape[-1]))
        taken = taken.sort(dim=-1).values
        weights = relative(pick(spans, taken), highest, rows)
        floor = least_kept(weights, total, top_k, top_p).maximum(min_p)
        if count >= peaks.shape[-1] or bool((floor > relative(heights[:, -1:], highest, rows)).all()):
            break
        count *= 8
    weights *= torch.ge(weights, floor, out=torch.empty_like(weights))  # masked_fill takes 4 to 12 times as long
    return tokens_at(taken, draw(weights, rows)[:, None])[:, 0]


def least_kept(weights: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weight of the last token that `top_k` and `top_p` keep; 0 where they keep all of these.

    weights: [rows, n], of the likeliest tokens; total: [rows, 1], of all where there is no `top_k`. Returns [rows, 1].
    """
    last = weights.shape[-1] - 1
    ranked = descending(weights)
    mass = ranked.cumsum(-1, dtype=total.dtype)
    total = torch.where(top_k > 0, mass.gather(1, (top_k - 1).clamp(0, last)), total)
    rank = torch.searchsorted(mass, top_p * total)
    return ranked.gather(1, rank.clamp(max=last)).masked_fill_(rank > last, 0)


def draw(weights: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    """The index at which the running sum of the weights first exceeds the row's random share of the total.

    First among the sums of spans, then inside one span: a running sum over the whole vocabulary takes ten times longer.
    weights: [rows, n]; returns [rows].
    """
    shares = [[uniform(row.sampling.seed, len(row.prompt) + len(row.answer))] for row in rows]
    sums = span_sums(weights)
    running = sums.cumsum(-1)
    target = running[:, -1:] * torch.tensor(shares, dtype=sums.dtype, device=sums.device)
    span = first_above(running, target)
    inside = pick(in_spans(weights, 0), span).cumsum(-1, dtype=sums.dtype)
    rest = target - (running.gather(1, span) - sums.gather(1, span))
    return (span * SPAN + first_above(inside, rest.clamp_(min=0)))[:, 0]


def first_above(running: Tensor, target: Tensor) -> Tensor:
    """The first index whose running sum exceeds `target`, or, where rounding has put that past the end, the total.

    It never is one of weight 0, which is a forbidden token. running: [rows, n]; target: [rows, 1], not negative.
    """
    end = running[:, -1:]
    return torch.searchsorted(running, target.minimum(end.nextafter(torch.zeros_like(end))), right=True)


# --- parts ---


def relative(logits: Tensor, highest: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    """Probabilities at the rows' temperatures, as shares of the likeliest token's."""
    sharpness = logits.new_tensor([[1 / max(row.sampling.temperature, COLDEST)] for row in rows])
    return logits.sub(highest).mul_(sharpness).exp_()


def in_spans(values: Tensor, filler: float) -> Tensor:
    """[rows, n] as [rows, spans, SPAN]."""
    missing = -values.shape[-1] % SPAN
    return (pad(values, (0, missing), value=filler) if missing else values).view(len(values), -1, SPAN)


def pick(spans: Tensor, taken: Tensor) -> Tensor:
    """Some spans of each row, end to end. spans: [rows, spans, SPAN]; taken: [rows, n]; returns [rows, n * SPAN]."""
    return spans[torch.arange(len(spans), device=spans.device)[:, None], taken].flatten(1)


def tokens_at(taken: Tensor, places: Tensor) -> Tensor:
    """The tokens at some places of what `pick` returned. Both [rows, m]."""
    return taken.gather(1, places // SPAN) * SPAN + places % SPAN


def greatest(logits: Tensor) -> Tensor:
    """The first of each row's greatest. On a CPU ten times as fast as `argmax`, which is not vectorized there."""
    spans = in_spans(logits, -torch.inf)
    best = spans.amax(-1).argmax(-1, keepdim=True)
    return tokens_at(best, pick(spans, best).argmax(-1, keepdim=True))[:, 0]


def span_sums(weights: Tensor) -> Tensor:
    return in_spans(weights, 0).sum(-1).to(precise(weights))


def precise(values: Tensor) -> torch.dtype:
    """For running sums: Apple's GPUs have no doubles."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def descending(values: Tensor) -> Tensor:
    """Each row sorted. NumPy's sort is vectorized, and on a CPU 15 times as fast as torch's."""
    if values.is_cpu:
        return torch.from_numpy(np.sort(values.numpy())).flip(-1)
    return values.sort(dim=-1, descending=True).values
