"""Losses in pieces are the plain ones, and no piece is large."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from workers.training import loss
from workers.training.loss import token_nll

LABELS, WIDTH, VOCABULARY = 11, 3, 300


def plain(states: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    logits = (states @ weight.mT).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return cross_entropy(logits, labels, reduction="none")


def values(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(LABELS, WIDTH).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_()
    return states, weight, torch.randint(VOCABULARY, (LABELS,)), torch.randn(LABELS)


@pytest.fixture(autouse=True)
def four_labels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE", 4 * VOCABULARY)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("frozen", [True, False])
def test_in_pieces_it_is_the_plain_one_with_its_gradients(softcap: float | None, frozen: bool) -> None:
    states, weight, labels, outer = values()
    weight.requires_grad_(not frozen)
    inputs = [states] if frozen else [states, weight]
    expected = plain(states, weight, labels, softcap)
    given = token_nll(states, weight, labels, softcap)
    assert torch.allclose(given, expected, rtol=0, atol=1e-5)
    for ours, plains in zip(
        torch.autograd.grad(given, inputs, outer), torch.autograd.grad(expected, inputs, outer), strict=True
    ):
        assert torch.allclose(ours, plains, rtol=0, atol=2e-5)


def test_in_bfloat16_it_is_within_the_rounding_of_its_inputs() -> None:
    states, weight, labels, outer = values(torch.bfloat16)
    expected = plain(states.float(), weight.float(), labels, None)
    given = token_nll(states, weight, labels)
    assert given.dtype == torch.float32
    assert torch.allclose(given, expected, rtol=0, atol=0.05)
    (ours,) = torch.autograd.grad(given, [states], outer)
    (plains,) = torch.autograd.grad(expected, [states], outer)
    assert ours.dtype == torch.bfloat16
    assert (ours - plains).abs().max() < 0.02 * plains.abs().max()


class Largest(TorchDispatchMode):
    """Notes the largest count of elements that an operation made."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made._is_view():
            self.elements = max(self.elements, made.numel())
        return made


def test_no_tensor_is_larger_than_a_piece_of_the_logits() -> None:
    states, weight, labels, _ = values()
    with Largest() as largest:
        plain(states, weight.detach(), labels, None)
    assert largest.elements == LABELS * VOCABULARY
    with Largest() as largest:
        token_nll(states, weight.detach(), labels).sum().backward()
    assert largest.elements == 4 * VOCABULARY
    with Largest() as largest:
        token_nll(states, weight, labels).sum().backward()
    assert largest.elements == 4 * VOCABULARY
