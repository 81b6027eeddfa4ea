"""Fast linear maps against plain ones."""

import pytest
import torch

from workers.engine.linear import Int8Linear, Linear, PackedLinear, packable

WEIGHT = torch.randn(768, 640, generator=torch.Generator().manual_seed(1)).bfloat16()
needs_kernels = pytest.mark.skipif(not packable(WEIGHT), reason="oneDNN's kernels for this are x86's")


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 640, generator=torch.Generator().manual_seed(count)).bfloat16()


@needs_kernels
@pytest.mark.parametrize("count", [1, 4, 33, 300])
def test_packed_weights_give_the_plain_product(count: int) -> None:
    exact = rows(count).float() @ WEIGHT.float().T
    torch.testing.assert_close(PackedLinear(WEIGHT)(rows(count)).float(), exact, rtol=1e-2, atol=0.1)
    torch.testing.assert_close(Linear(WEIGHT)(rows(count)).float(), exact, rtol=1e-2, atol=0.1)


@needs_kernels
@pytest.mark.parametrize("count", [1, 4, 33, 300])
def test_8_bits_are_off_by_little_over_a_hundredth_of_the_spread(count: int) -> None:
    exact = rows(count).float() @ WEIGHT.float().T
    error = Int8Linear(WEIGHT)(rows(count)) - exact
    assert error.std() < 0.013 * exact.std()


@needs_kernels
def test_in_8_bits_no_row_changes_another() -> None:
    linear, x = Int8Linear(WEIGHT), rows(8)
    alone = linear(x[:1])
    x[1:] *= 1000
    assert torch.equal(linear(x)[:1], alone)
    assert torch.equal(linear(torch.zeros(2, 640, dtype=torch.bfloat16)), torch.zeros(2, 768))
