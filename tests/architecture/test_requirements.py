"""What is locked is what `requirements/` says, of which each set has a lock; how it is made is `make lock`."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lyo import env

REQUIREMENTS = env.BASE_DIR / "requirements"
SETS = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
Pins = dict[str, set[str]]


def requirements(name: str) -> Iterator[str]:
    """Each line of a set, and of the sets that it includes."""
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        if line.startswith("-r "):
            yield from requirements(Path(line.removeprefix("-r ")).stem)
        elif requirement := line.partition("#")[0].strip():
            yield requirement


def pins(lines: Iterator[str]) -> Pins:
    found: Pins = {}
    for requirement in map(Requirement, lines):
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


def entries(name: str) -> list[str]:
    """Each package of a lock with its hashes."""
    text = re.sub(r"^ *#.*\n", "", (REQUIREMENTS / f"{name}.lock").read_text(), flags=re.MULTILINE)
    return [entry for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip()) if entry]


def locked(name: str) -> Pins:
    return pins(entry.partition("--hash")[0].strip() for entry in entries(name))


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_locked_as_it_is_required_with_hashes_but_torch(name: str) -> None:
    wanted = {package: version for package, version in pins(requirements(name)).items() if package != "torch"}
    found = locked(name)
    assert {package: found.get(package) for package in wanted} == wanted, "run `make lock`"
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries(name))
    assert not [package for package in found if re.match(r"(torch|triton|nvidia-.*|cuda-.*)$", package)]


@pytest.mark.parametrize("name", [name for name in SETS if name != "tools"])
def test_all_sets_have_the_same_versions(name: str) -> None:
    largest = locked("dev")
    assert {
        package: (version, largest[package]) for package, version in locked(name).items() if version != largest[package]
    } == {}


def test_what_runs_has_neither_linters_nor_tests_nor_peers() -> None:
    assert locked("local").keys().isdisjoint({"pytest", "ruff", "mypy", "trl", "xllamacpp", "schemathesis", "moto"})


@pytest.mark.parametrize("path", [*REQUIREMENTS.iterdir(), env.BASE_DIR / "Makefile"], ids=lambda path: path.name)
def test_no_registry_is_written_down(path: Path) -> None:
    assert not re.search(r"https?://|--(extra-)?index-url(?! \$)|--find-links", path.read_text())
