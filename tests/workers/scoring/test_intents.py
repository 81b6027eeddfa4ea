"""The classifiers of queries and of kinds of content, and the commands that say how good they are."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workers.models.embedder import Embedder
from workers.scoring.__main__ import read
from workers.scoring.evaluation import calibration_error, main
from workers.scoring.evaluation import read as read_lines
from workers.scoring.heads import SHIPPED, Heads
from workers.scoring.intents import OOS, IntentClassifier
from workers.scoring.queries import understood
from workers.scoring.topics import Topics


def clouds(centres: int, each: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Vectors of length 1 about `centres` axes of 16."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.eye(16)[:centres], each, axis=0) + 0.1 * random.standard_normal((centres * each, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"intent {n}" for n in range(centres) for _ in range(each)]


def test_intents_are_told_apart_and_what_is_none_of_them_is_said() -> None:
    classifier = IntentClassifier.fit(*clouds(3, 40))
    rows, intents = clouds(4, 20, seed=1)
    found = classifier.predict(rows)
    assert np.mean([a == b for a, b in zip(found[:60], intents[:60], strict=True)]) > 0.95
    assert np.mean([one == OOS for one in found[60:]]) > 0.9  # a fourth, which it has never seen


def test_known_queries_out_of_scope_help() -> None:
    rows, intents = clouds(4, 40)
    classifier = IntentClassifier.fit(rows, [intent.replace("intent 3", OOS) for intent in intents])
    assert classifier.predict(clouds(4, 20, seed=1)[0][60:]) == [OOS] * 20


def test_a_classifier_is_kept_and_read_as_it_was(tmp_path: Path) -> None:
    rows, intents = clouds(2, 20)
    classifier = IntentClassifier.fit(rows, intents)
    classifier.save(tmp_path / "c.safetensors")
    kept = IntentClassifier.load(tmp_path / "c.safetensors")
    assert (kept.labels, kept.threshold) == (classifier.labels, pytest.approx(classifier.threshold))
    assert np.array_equal(kept.weights, classifier.weights)


def test_an_intent_of_one_example_does_not_take_away_the_bound() -> None:
    rows, intents = clouds(3, 40)
    classifier = IntentClassifier.fit(rows[:81], intents[:81])
    assert np.isfinite(classifier.threshold)
    found = classifier.predict(clouds(4, 20, seed=1)[0][60:])
    assert found.count(OOS) > 15


def test_one_intent_alone_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="two intents at least"):
        IntentClassifier.fit(*clouds(1, 20))


@pytest.mark.parametrize(
    ("text", "intent", "subject", "level"),
    [
        ("how do plants turn light into food", "explain", "biology", ""),
        ("advanced exercises on derivatives", "practise", "math", "advanced"),
        ("python course for beginners", "find_course", "programming", "beginner"),
        ("define photosynthesis", "define", "biology", ""),
        ("speed vs velocity", "compare", "physics", ""),
        ("best pizza in town", "off_topic", "", ""),
    ],
)
def test_the_shipped_head_understands(text: str, intent: str, subject: str, level: str) -> None:
    embedder = Embedder()
    topics = Topics.of(
        [
            ("a", "biology", "Photosynthesis in plants"),
            ("b", "math", "Derivatives"),
            ("c", "programming", "Python functions"),
            ("d", "physics", "Speed and velocity"),
        ],
        lambda texts: np.array(embedder.embed(texts).vectors, np.float32),
    )
    vector = np.array(embedder.embed([text]).vectors[0], np.float32)
    found = understood(text, vector, topics, IntentClassifier.load())
    assert (found.intent, found.subject, found.level) == (intent, subject, level)


def test_the_shipped_heads_know_the_levels_that_they_were_taught() -> None:
    """Weights that were written transposed would not."""
    catalogue = Path(__file__).parents[3] / "apps" / "content" / "catalogue"
    lessons = [text for text in read(catalogue) if text.teaches][:40]
    texts = [lesson.whole for lesson in lessons]
    vectors = np.array(Embedder().embed(texts).vectors, np.float32)
    judged = Heads.load(SHIPPED).judge(texts, vectors)
    assert np.mean([one.level == lesson.level for one, lesson in zip(judged, lessons, strict=True)]) > 0.8


# --- the commands ---


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ways(template: Callable[[str, int], dict[str, str]]) -> list[dict[str, str]]:
    return [
        template(thing, n) for n, thing in enumerate(("bread", "milk", "rice", "tea", "salt", "fish", "corn", "oil"))
    ]


def test_intent_eval_says_how_good_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(
        tmp_path / "train.jsonl",
        *ways(lambda thing, n: {"text": f"how much does {thing} cost", "intent": "price"}),
        *ways(lambda thing, n: {"text": f"how do I cook {thing}", "intent": "recipe"}),
    )
    test = write(
        tmp_path / "test.jsonl",
        {"text": "what is the price of sugar", "intent": "price"},
        {"text": "a recipe for beans", "intent": "recipe"},
        {"text": "my train is late", "intent": "oos"},
    )
    main(["intent", "--train", str(train), "--test", str(test), "--json", str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures) == {"in_scope_accuracy", "oos_recall", "macro_f1", "ms_per_query"}
    assert figures["oos_recall"] == 1
    assert figures["in_scope_accuracy"] in (0.5, 1.0)
    assert "in_scope_accuracy" in capsys.readouterr().out


def test_content_eval_says_how_good_it_is(tmp_path: Path) -> None:
    lessons = ways(
        lambda thing, n: {"text": f"The chemistry of {thing}, explained step by step", "label": "educational"}
    )
    fun = ways(lambda thing, n: {"text": f"Celebrity eats {thing} and the party goes wild", "label": "entertainment"})
    train = write(tmp_path / "train.jsonl", *lessons, *fun)
    test = write(
        tmp_path / "test.jsonl",
        {"text": "The physics of ice, explained", "label": "educational"},
        {"text": "Pop star falls off the stage", "label": "entertainment"},
    )
    main(["content", "--train", str(train), "--test", str(test), "--json", str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["accuracy"], figures["auc"]) == (1.0, 1.0)
    assert 0 <= figures["ece"] < 0.5


@pytest.mark.parametrize(
    "packed",
    [bytes, gzip.compress, lambda data: data.decode().encode("utf-8-sig"), lambda data: data.decode().encode("utf-16")],
)
def test_lines_are_read_in_every_encoding_and_compressed(tmp_path: Path, packed: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "lines.JSONL.GZ"
    file.write_bytes(packed('{"text": "ä\u2028", "intent": "a"}\n\n{"text": "x", "intent": "b"}'.encode()))
    assert read_lines(file, "intent") == [("ä\u2028", "a"), ("x", "b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("\udcff", "line 2 is not utf-8"),
        ('{"text": 3, "intent": "a"}', "line 2: expected"),
        ('{"text": "x"}', "line 2: expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "a", "intent": "b"}\n' + line + "\n", errors="surrogateescape")
    with pytest.raises(SystemExit, match=message):
        main(["intent", "--train", str(file), "--test", str(file)])


def test_calibration_error_is_the_gap_of_probability_and_frequency() -> None:
    found, truth = np.array([0.95, 0.95, 0.15, 0.15]), np.array([True, False, False, False])
    assert calibration_error(found, truth) == pytest.approx((0.45 + 0.15) / 2)
