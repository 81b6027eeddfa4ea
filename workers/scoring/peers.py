"""What `manage.py search_eval` needs of the torch side: embeddings, and the rankings of BM25 as a peer.

Reads `{"docs": [...], "queries": [...]}` of texts from a JSON file, and writes `docs.f32` and `queries.f32` (rows of
little-endian float32) and `bm25.json` (for each query the places of documents, best first) into a folder.
"""

import json
import sys
from pathlib import Path

import bm25s
import numpy as np

from workers.models.embedder import Embedder

DEPTH = 100
AT_ONCE = 256


def main(source: Path, folder: Path) -> None:
    texts = json.loads(source.read_text())
    embedder = Embedder()
    for name in ("docs", "queries"):
        with (folder / f"{name}.f32").open("wb") as file:
            for start in range(0, len(texts[name]), AT_ONCE):
                part = texts[name][start : start + AT_ONCE]
                file.write(np.array(embedder.embed(part).vectors, "<f4").tobytes())
                print(f"{start + len(part)} of {len(texts[name])} {name} embedded", file=sys.stderr)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts["docs"], stopwords="en", show_progress=False), show_progress=False)
    asked = bm25s.tokenize(texts["queries"], stopwords="en", show_progress=False)
    places, _ = index.retrieve(asked, k=min(DEPTH, len(texts["docs"])), show_progress=False)
    (folder / "bm25.json").write_text(json.dumps(places.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
