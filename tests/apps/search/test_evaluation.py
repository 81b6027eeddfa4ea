"""search_eval on a handful of documents."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.search.evaluation import measured

DOCS = {
    "d1": "Leaves turn light into sugar.",
    "d2": "A cell copies its chromosomes and divides.",
    "d3": "A for loop repeats its body.",
    "d4": "Fractions are added by way of a common denominator.",
}
QUERIES = {"q1": "how do plants live on sunshine", "q2": "chromosomes", "q3": "nobody judged this"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("docs", "queries", "qrels")}
    made["docs"].write_text(
        "".join(json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in DOCS.items())
    )
    made["queries"].write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in QUERIES.items()))
    made["qrels"].write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\nq2\td3\t0\n")
    return made


def run(files: dict[str, Path], **more: Any) -> None:
    call_command("search_eval", **files, **more)


@pytest.mark.django_db
def test_meaning_finds_what_words_do_not(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    run(files, json=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["lyo"] == {"ndcg": 1.0, "recall": 1.0}
    assert json.loads((tmp_path / "out.json").read_text())["bm25"]["ndcg"] < 1
    assert "NDCG@10" in capsys.readouterr().out


@pytest.mark.django_db
def test_what_is_judged_not_to_fit_is_no_question(files: dict[str, Path], tmp_path: Path) -> None:
    with files["qrels"].open("a") as file:
        file.write("q3\td1\t-1\n")
    run(files, json=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["lyo"]["ndcg"] == 1.0


def test_files_of_another_encoding_are_refused(files: dict[str, Path]) -> None:
    files["docs"].write_bytes(b'{"_id": "d", "text": "\xff"}\n')
    with pytest.raises(CommandError, match="not UTF-8"):
        run(files)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("docs", "{", "docs, line 5 is not JSON"),
        ("queries", '{"_id": "q"}', "queries, line 4: expected"),
        ("qrels", "q1\td1", "qrels, line 5: expected query, document and gain"),
    ],
)
def test_a_bad_line_is_named(files: dict[str, Path], name: str, line: str, message: str) -> None:
    with files[name].open("a") as file:
        file.write(line + "\n")
    with pytest.raises(CommandError, match=message):
        run(files)


def test_measures_are_those_of_the_textbook() -> None:
    judged = {"q": {"a": 2, "b": 1, "c": 0}}
    figures = measured([["b", "x", "a"]], ["q"], judged)
    assert figures == {"ndcg": round((1 + 2 / 2) / (2 + 1 / 1.5849625), 4), "recall": 1.0}
