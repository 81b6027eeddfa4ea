"""What is minimised.

With Gemma's vocabulary the logits would be the largest tensor and the dearest product of a step: they are computed only
where there is a label, some tokens at a time, and their gradient at once, so that none are kept. The gradient of the
states is taken in the forward pass as in Liger Kernel (arXiv:2410.10989).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from workers.training.data import Example, Item
from workers.training.model import Learner
from workers.training.recipe import Method

PIECE = 2**24  # logits that are in memory at once, in float32 and in the weights' dtype


def token_nll(states: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None) -> Tensor:
    """Negative log-likelihood of each label.

    states: [labels, width]; weight: [vocabulary, width], the output matrix, of the same dtype; labels: [labels].
    softcap: c, where the logits are c tanh(states weightᵀ / c), as in Gemma 2. Returns [labels] in float32.
    """
    nll: Tensor = TokenNLL.apply(states, weight, labels, softcap)
    return nll


class TokenNLL(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
        nll = states.new_empty(len(labels), dtype=torch.float32)
        gradient = torch.empty_like(states)
        for piece in pieces(len(labels), len(weight)):
            nll[piece], of_logits = nll_and_gradient(states[piece], weight, labels[piece], softcap)
            if ctx.needs_input_grad[0]:
                gradient[piece] = of_logits @ weight
        ctx.softcap = softcap
        ctx.save_for_backward(gradient, *((states, weight, labels) if ctx.needs_input_grad[1] else ()))
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        gradient, *kept = ctx.saved_tensors
        scale = outer[0].to(gradient.dtype)[:, None]
        of_weight = None
        if kept:
            states, weight, labels = kept
            total = torch.zeros_like(weight, dtype=torch.float32)
            for piece in pieces(len(labels), len(weight)):
                of_logits = nll_and_gradient(states[piece], weight, labels[piece], ctx.softcap)[1]
                total += of_logits.mT @ (states[piece] * scale[piece])
            of_weight = total.to(weight.dtype)
        return gradient * scale, of_weight, None, None


def pieces(labels: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, PIECE // vocabulary)
    return (slice(start, start + size) for start in range(0, labels, size))


def nll_and_gradient(states: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Of a piece: the losses, and their gradient with respect to states weightᵀ, [labels, vocabulary]."""
    logits = states @ weight.mT
    if softcap is not None:
        bounded = torch.tanh(logits.float() / softcap)
        logits = bounded * softcap
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    places = labels[:, None]
    nll = -logprobs.gather(1, places)[:, 0]
    gradient = logprobs.exp_().scatter_add_(1, places, logprobs.new_full(places.shape, -1))
    if softcap is not None:
        gradient *= 1 - bounded.square_()
    return nll, gradient.to(states.dtype)


# --- of a step ---


class Objective(NamedTuple):
    """loss: of some items, summed; count: how much an item counts for, in the mean over all items of a step."""

    loss: Callable[[Learner, Sequence[Item]], Tensor]
    count: Callable[[Item], int]


def supervised(learner: Learner, items: Sequence[Item]) -> Tensor:
    return nll(learner, [example for item in items for example in item]).sum()


def dpo(learner: Learner, items: Sequence[Item]) -> Tensor:
    """Direct preference optimisation (arXiv:2305.18290)."""
    chosen, rejected = log_ratios(learner, [example for item in items for example in item]).view(-1, 2).unbind(1)
    return -logsigmoid(learner.recipe.beta * (chosen - rejected)).sum()


def kto(learner: Learner, items: Sequence[Item]) -> Tensor:
    """Kahneman-Tversky optimisation (arXiv:2402.01306); its divergence is estimated on neighbours' answers."""
    examples = [example for item in items for example in item]
    strangers = [one.with_answer_of(other) for one, other in zip(examples, [*examples[1:], examples[0]], strict=True)]
    with torch.no_grad():
        divergence = log_ratios(learner, strangers).mean().clamp(min=0)
    signs = torch.tensor([1.0 if example.liked else -1.0 for example in examples], device=learner.device)
    return (1 - torch.sigmoid(learner.recipe.beta * signs * (log_ratios(learner, examples) - divergence))).sum()


OBJECTIVES: dict[Method, Objective] = {
    "sft": Objective(supervised, lambda item: len(item[0].learnt)),
    "full": Objective(supervised, lambda item: len(item[0].learnt)),
    "dpo": Objective(dpo, lambda item: 1),
    "kto": Objective(kto, lambda item: 1),
}


def nll(learner: Learner, examples: Sequence[Example]) -> Tensor:
    """Of every label of the examples, [labels]."""
    batch = learner.batch(examples)
    states, weight = learner.states(batch)
    return token_nll(states, weight, batch.labels, learner.softcap)


def log_ratios(learner: Learner, examples: Sequence[Example]) -> Tensor:
    """How much likelier the answers are to the model than to the one it began as, in natural logarithms, [examples]."""
    counts = [len(example.learnt) for example in examples]
    with torch.no_grad(), learner.as_it_began():
        before = nll(learner, examples)
    change = before - nll(learner, examples)
    return torch.stack([part.sum() for part in change.split(counts)])
