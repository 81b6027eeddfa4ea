"""What `make soak` takes for too much memory."""

import pytest

from tests.bench.soak import WATCHED, past_bounds


def table(**processes: list[float]) -> list[dict[str, float]]:
    """Rows of which each process that is not named has 100 MiB."""
    return [
        {name: values[row] for name, values in ({name: [100.0] * 4 for name in WATCHED} | processes).items()}
        for row in range(4)
    ]


@pytest.mark.parametrize(
    ("processes", "problems"),
    [
        ({}, []),
        ({"web": [100, 200, 300, 219]}, []),  # what it had in between is given back
        ({"web": [100, 200, 200, 221]}, ["web ended with 221 MiB, 1.10 times its early peak"]),
        ({"generate": [900, 900, 1001, 900]}, ["generate had 1001 MiB; 1000 are its bound"]),
        ({"generate": [900, 900, 1000, 900]}, []),
    ],
)
def test_memory_is_past_its_bounds(processes: dict[str, list[float]], problems: list[str]) -> None:
    assert past_bounds(table(**processes), early=2, bound=1000) == problems
