import pytest

from apps.common.names import folded
from tests.helpers import wide


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann", "ANN"),
        ("ann", wide("ann")),
        ("strasse", "Straße"),
        ("\u212a", "k"),  # the sign for kelvin
        ("e\u0301", "É"),
        ("ﬁ", "FI"),
        ("ΐ", "\u03b9\u0308\u0301"),
    ],
)
def test_names_that_differ_by_case_or_width_are_the_same(one: str, other: str) -> None:
    assert folded(one) == folded(other) == folded(folded(other))


def test_other_names_are_others() -> None:
    assert len({folded(name) for name in ("ann", "anna", "an n", "änn")}) == 4
