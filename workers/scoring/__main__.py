"""Train the heads that judge content on a catalogue: `python -m workers.scoring apps/content/catalogue`.

What teaches is what has a topic. Quality is learnt from the catalogue's texts beside the same texts spoilt. Prints what
five-fold cross-validation finds.
"""

import argparse
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from workers.models.embedder import Embedder
from workers.scoring.heads import LEVELS, SHIPPED, Heads
from workers.scoring.text import WORD, features

FOLDS = 5
TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True, slots=True)
class Text:
    """title and body as words; `number` tells apart the items that texts were made of."""

    number: int
    title: str
    body: str
    teaches: bool
    level: str

    @property
    def whole(self) -> str:
        return f"{self.title}\n\n{self.body}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.scoring", description=__doc__.partition("\n")[0])
    parser.add_argument("catalogue", type=Path, help="a folder of .jsonl files of items")
    parser.add_argument("--target", type=Path, default=SHIPPED, help="where the heads go")
    options = parser.parse_args()
    texts = list(read(options.catalogue))
    embedder = Embedder()
    weights = {
        "educational": educational(texts, embedder),
        "quality": quality(texts),
        "level": level([text for text in texts if text.teaches], embedder),
    }
    Heads(weights, "").save(options.target)
    print(f"{options.target}: sha256 {Heads.load(options.target).digest}")


def read(folder: Path) -> Iterator[Text]:
    number = 0
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "body" in record:
                body = html.unescape(TAG.sub(" ", record["body"]))
                yield Text(number, record["title"], body, bool(record["topics"]), record["level"])
                number += 1


def educational(texts: list[Text], embedder: Embedder) -> np.ndarray:
    """Of whole texts, titles and halves, for much of what comes is short."""
    parts = [(text, part) for text in texts for part in (text.whole, text.title, *_halves(text.body))]
    vectors = np.array(embedder.embed([part for _, part in parts]).vectors, np.float32)
    teaches = np.array([text.teaches for text, _ in parts])
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
    return _fitted("educational", model, vectors, teaches, [text.number for text, _ in parts])


def quality(texts: list[Text]) -> np.ndarray:
    random = Random(1)  # noqa: S311
    pairs = [(text, made) for text in texts for made in ((text.whole, True), (_spoilt(text, random), False))]
    counted = np.stack([features(part) for _, (part, _) in pairs])
    good = np.array([is_good for _, (_, is_good) in pairs])
    return _fitted("quality", LogisticRegression(C=0.3, max_iter=2000), counted, good, [t.number for t, _ in pairs])


def level(texts: list[Text], embedder: Embedder) -> np.ndarray:
    wholes = [text.whole for text in texts]
    vectors = np.array(embedder.embed(wholes).vectors, np.float32)
    rows = np.hstack([vectors, np.stack([features(whole) for whole in wholes])])
    labels = np.array([LEVELS.index(text.level) for text in texts])
    model = LogisticRegression(C=3.0, class_weight="balanced", max_iter=5000)
    found = cross_val_predict(model, rows, labels, cv=FOLDS)
    print(f"level: accuracy {(found == labels).mean():.2f}, within one level {(abs(found - labels) < 2).mean():.2f}")
    model.fit(rows, labels)
    return np.ascontiguousarray(np.hstack([model.coef_, model.intercept_[:, None]]), np.float32)


def _fitted(
    name: str, model: LogisticRegression, rows: np.ndarray, labels: np.ndarray, groups: list[int]
) -> np.ndarray:
    """Weights and bias; an item's texts are never both learnt from and judged by."""
    found = cross_val_predict(model, rows, labels, groups=groups, cv=GroupKFold(FOLDS), method="predict_proba")[:, 1]
    print(f"{name}: AUC {roc_auc_score(labels, found):.3f}, accuracy {((found > 0.5) == labels).mean():.3f}")
    model.fit(rows, labels)
    return np.append(model.coef_[0], model.intercept_).astype(np.float32)


def _halves(text: str) -> tuple[str, str]:
    middle = text.find(" ", len(text) // 2)
    return text[:middle], text[middle:]


def _spoilt(text: Text, random: Random) -> str:
    """What nobody should be shown: cut short, shuffled, repeated, shouted or full of links."""
    words = WORD.findall(text.whole)
    match random.randrange(5):
        case 0:
            return " ".join(words[: random.randint(1, 12)])
        case 1:
            return " ".join(random.sample(words, len(words)))
        case 2:
            return f"{' '.join(words[:8])} " * random.randint(3, 12)
        case 3:
            return " ".join(words[:60]).upper() + "!!!" * random.randint(1, 5)
        case _:
            return " ".join(f"{word} http://x.yz/{random.randrange(10**6)} >>> $$$" for word in words[:20])


if __name__ == "__main__":
    main()
