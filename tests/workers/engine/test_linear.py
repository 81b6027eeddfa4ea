"""Fast linear maps against plain ones."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import resident_mb
from workers.engine.attention import zeros
from workers.engine.linear import Embedding, Int8Linear, Linear, PackedLinear, packable

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


@needs_kernels
@pytest.mark.parametrize("kind", [PackedLinear, Int8Linear])
def test_of_weights_in_a_file_only_the_packed_ones_stay_in_memory(
    tmp_path: Path, kind: type[PackedLinear] | type[Int8Linear]
) -> None:
    save_file({"weight": torch.ones(8192, 4096, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    weight = load_file(tmp_path / "a.safetensors")["weight"]
    kind(WEIGHT)  # oneDNN's own pages
    before = resident_mb().of_files
    packed = kind(weight)
    assert resident_mb().of_files - before < 16  # of 64
    assert packed(torch.ones(1, 4096, dtype=torch.bfloat16))[0, 0].item() == pytest.approx(4096)
    assert weight[8191, 4095] == 1  # and it is there when it is asked for


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages stay")
def test_of_an_embedding_in_a_file_no_row_stays_in_memory(tmp_path: Path) -> None:
    save_file({"weight": torch.arange(8192 * 4096).view(8192, 4096) % 251}, tmp_path / "a.safetensors")
    weight = load_file(tmp_path / "a.safetensors")["weight"]
    ids = torch.arange(0, 8192, 2)
    embedding, kept = Embedding(weight, stays=False), Embedding(weight, stays=True)
    before = resident_mb().of_files
    for _ in range(2):
        assert torch.equal(embedding(ids)[:, 7], (ids * 4096 + 7) % 251)
    assert resident_mb().of_files - before < 16  # of 256
    kept(ids)
    assert resident_mb().of_files - before > 128


def test_an_embedding_that_is_in_no_file_is_left_as_it_is() -> None:
    embedding = Embedding(WEIGHT.clone(), stays=False)
    ids = torch.arange(2000) % len(WEIGHT)
    for _ in range(2):
        assert torch.equal(embedding(ids), WEIGHT[ids])


def test_keys_and_values_that_are_freed_are_the_systems_at_once() -> None:
    before = resident_mb().own
    arenas = [zeros((64, 256, 1, 256), torch.bfloat16, torch.device("cpu")) for _ in range(16)]  # 8 MB each
    assert resident_mb().own - before < 8  # nothing is written yet
    for arena in arenas:
        arena.fill_(1)
    assert resident_mb().own - before > 120
    del arena, arenas[1:]
    assert resident_mb().own - before < 24
