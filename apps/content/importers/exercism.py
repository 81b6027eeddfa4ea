"""An Exercism track: its config.json, and the exercises' instructions where the track's folder has them.

https://exercism.org/docs/building/tracks/config-json. Concepts become topics, whose prerequisites are those of the
exercise that teaches them; exercises become items.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from apps.common.constants import Level, Subject
from apps.common.sheets import BadSheet, decoded
from apps.content.importers import Record, Unreadable, files_of

LEVELS = ((3, Level.BEGINNER), (6, Level.INTERMEDIATE), (10, Level.ADVANCED))  # up to this difficulty
INSTRUCTIONS = ("introduction.md", "instructions.md")
SKIPPED = ("deprecated", "wip")


def read(path: Path) -> Iterator[Record]:
    file = next(iter(files_of(path, "config.json")), path / "config.json") if path.is_dir() else path
    try:
        track = json.loads(decoded(file.read_bytes()))
        exercises = {kind: list(track["exercises"].get(kind) or []) for kind in ("concept", "practice")}
        slug, name = str(track["slug"]), str(track["language"])
        concepts = {concept["slug"]: concept["name"] for concept in track.get("concepts", [])}
        counts = Counter(concept["slug"] for concept in track.get("concepts", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{file} is no config.json of an Exercism track: {error!r}") from error
    for concept, count in counts.items():
        if count > 1:
            yield Record(f"{file.name}, concept {concept!r}", error=f"slug: {concept!r} is that of {count} concepts.")
    yield from _topics(slug, concepts, [exercise for exercise in exercises["concept"] if isinstance(exercise, dict)])
    for kind, listed in exercises.items():
        for number, exercise in enumerate(listed, start=1):
            if not isinstance(exercise, dict):
                yield Record(f"{file.name}, {kind} exercise {number}", error="It is no JSON object.")
                continue
            place = f"{file.name}, {kind} exercise {number}, {exercise.get('slug')!r}"
            if exercise.get("status") in SKIPPED:
                continue
            try:
                if unknown := [repr(concept) for concept in _named(kind, exercise) if concept not in concepts]:
                    yield Record(place, error=f"The track defines no concept {', '.join(unknown)}.")
                    continue
                yield Record(place, "item", _item(file.parent, slug, name, kind, exercise))
            except (KeyError, TypeError, OSError, BadSheet) as error:
                yield Record(place, error=f"It cannot be read: {error!r}")


def _topics(track: str, concepts: dict[str, str], exercises: list[dict[str, Any]]) -> Iterator[Record]:
    """Each after those that it needs; what would come before itself loses the prerequisite that closes the circle."""
    needs: dict[str, list[str]] = {concept: [] for concept in concepts}
    for exercise in exercises:
        for concept in exercise.get("concepts") or []:
            if concept in needs:
                needs[concept] += [one for one in exercise.get("prerequisites") or [] if one in concepts]
    done: dict[str, None] = {}

    def visit(concept: str, path: tuple[str, ...]) -> None:
        for needed in needs[concept]:
            if needed not in done and needed not in path:
                visit(needed, (*path, concept))
        done[concept] = None

    for concept in needs:
        if concept not in done:
            visit(concept, ())
    for position, concept in enumerate(done):
        before = list(done)[:position]
        yield Record(
            f"concept {concept!r}",
            "topic",
            {
                "slug": f"{track}-{concept}",
                "name": concepts[concept],
                "subject": Subject.PROGRAMMING.value,
                "position": position,
                "prerequisites": [f"{track}-{one}" for one in dict.fromkeys(needs[concept]) if one in before],
            },
        )


def _named(kind: str, exercise: dict[str, Any]) -> list[str]:
    """The concepts that are read of an exercise: those that it trains, and those that come before these."""
    before = exercise.get("prerequisites") or [] if kind == "concept" else []
    return list(dict.fromkeys([*_trained(kind, exercise), *before]))


def _trained(kind: str, exercise: dict[str, Any]) -> list[str]:
    return exercise["concepts"] if kind == "concept" else exercise.get("practices") or []


def _item(folder: Path, track: str, language: str, kind: str, exercise: dict[str, Any]) -> dict[str, Any]:
    docs = folder / "exercises" / kind / exercise["slug"] / ".docs"
    texts = [decoded((docs / name).read_bytes()) for name in INSTRUCTIONS if (docs / name).is_file()]
    difficulty = exercise.get("difficulty", 1)
    return {
        "key": f"exercism:{track}:{exercise['slug']}",
        "title": exercise["name"],
        "body": MarkdownIt("commonmark", {"html": False}).render("\n\n".join(texts)),
        "kind": "exercise",
        "subject": Subject.PROGRAMMING.value,
        "topics": [f"{track}-{concept}" for concept in _trained(kind, exercise)],
        "level": next((level.value for most, level in LEVELS if difficulty <= most), Level.ADVANCED.value),
        "tags": [track, f"{kind} exercise"],
        "author": "Exercism",
        "licence": "MIT",
        "source_url": f"https://exercism.org/tracks/{track}/exercises/{exercise['slug']}",
    }
