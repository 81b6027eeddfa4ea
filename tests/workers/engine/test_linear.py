"""Fast linear maps against plain ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import resident_mb
from tests.workers.conftest import needs_kernels
from workers.engine.attention import zeros
from workers.engine.linear import (
    MAPS,
    ROWS_PER_EVICTION,
    Embedding,
    Int8Linear,
    Linear,
    MappedFiles,
    PackedLinear,
    multiplies_int8,
)

WEIGHT = torch.randn(768, 640, generator=torch.Generator().manual_seed(1)).bfloat16()


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 640, generator=torch.Generator().manual_seed(count)).bfloat16()


DTYPES = [(torch.bfloat16, 0.1), (torch.float32, 2e-4)]


@needs_kernels
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("count", [1, 4, 33, 300])
def test_packed_weights_give_the_plain_product(count: int, dtype: torch.dtype, error: float) -> None:
    weight, x = WEIGHT.to(dtype), rows(count).to(dtype)
    exact = (x.double() @ weight.double().T).float()
    for linear in (PackedLinear(weight), Linear(weight)):
        assert linear(x).dtype == dtype
        torch.testing.assert_close(linear(x).float(), exact, rtol=error / 10, atol=error)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 4, 33, 300])
def test_8_bits_are_off_by_little_over_a_hundredth_of_the_spread(count: int, dtype: torch.dtype) -> None:
    exact = rows(count).float() @ WEIGHT.float().T
    error = Int8Linear(WEIGHT)(rows(count).to(dtype)) - exact
    assert error.std() < 0.013 * exact.std()


@needs_kernels
def test_in_8_bits_no_row_changes_another() -> None:
    linear, x = Int8Linear(WEIGHT), rows(8)
    alone = linear(x[:1])
    x[1:] *= 1000
    assert torch.equal(linear(x)[:1], alone)
    assert torch.equal(linear(torch.zeros(2, 640, dtype=torch.bfloat16)), torch.zeros(2, 768))


@pytest.mark.skipif(not MAPS.is_file(), reason="without Linux's list of what is mapped, all stays")
def test_rows_of_an_embedding_in_a_file_leave_memory(tmp_path: Path) -> None:
    numbers = (torch.arange(16384) % 251).to(torch.uint8)
    save_file({"weight": numbers[:, None].expand(-1, 4096).contiguous()}, tmp_path / "a.safetensors")
    weight = load_file(tmp_path / "a.safetensors")["weight"]
    assert MappedFiles().hold(weight) and not MappedFiles().hold(WEIGHT)
    ids = torch.arange(0, 16384, 2)
    embedding, resident = Embedding(weight, evicts=True), Embedding(weight, evicts=False)
    before = resident_mb().of_files
    for _ in range(2):
        assert torch.equal(embedding(ids)[:, 7], numbers[ids])
    for number in range(2 * (ROWS_PER_EVICTION + 1)):  # a few at a time, as answers are written
        assert embedding(ids[number : number + 1])[0, 7] == numbers[2 * number]
    assert resident_mb().of_files - before < 8  # of 64
    resident(ids)
    assert resident_mb().of_files - before > 24


@pytest.mark.parametrize("abilities", [{"avx512_vnni"}, {"amx_int8"}, {"avx512_bf16"}, set()], ids=str)
def test_products_of_8_bits_need_a_cpu_with_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, abilities: set[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(abilities, True))
    assert multiplies_int8(torch.device("cpu")) == bool(abilities & {"avx512_vnni", "amx_int8"})
    assert not multiplies_int8(torch.device("cuda"))


def test_keys_and_values_that_are_freed_are_the_systems_at_once() -> None:
    before = resident_mb().own
    arenas = [zeros((64, 256, 1, 256), torch.bfloat16, torch.device("cpu")) for _ in range(16)]  # 8 MB each
    assert resident_mb().own - before < 8  # nothing is written yet
    for arena in arenas:
        arena.fill_(1)
    assert resident_mb().own - before > 120
    del arena, arenas[1:]
    assert resident_mb().own - before < 24
