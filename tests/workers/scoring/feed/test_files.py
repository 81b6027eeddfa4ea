"""The files of `manage.py feed_eval`: what counts, and what is wrong with a bad one."""

import gzip
import sys
from pathlib import Path

import pytest

from workers.scoring.feed.evaluation import main, read
from workers.scoring.files import BadFile

GOOD = "user,item\nann,a\nann,b\n"


def written(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_rows_without_a_time_are_in_their_order_and_those_with_one_in_that(tmp_path: Path) -> None:
    plain = written(tmp_path, "plain.csv", "user,item\nann,a\nbob,b\nann,c\n")
    timed = written(tmp_path, "timed.csv", "user,item,timestamp\nann,c,30\nann,b,20\nzoe,a,10\n")
    before, after = read(plain, timed)
    assert (before.users.tolist(), before.items.tolist(), before.times.tolist()) == ([0, 0, 1], [0, 2, 1], [2, 4, 3])
    assert (after.users.tolist(), after.items.tolist(), after.shape) == ([0, 0, 2], [1, 2, 0], (3, 3))


def test_events_count_as_in_the_feed(tmp_path: Path) -> None:
    rows = [
        "ann,shown,impression,", "ann,opened,click,", "ann,kept,save,", "ann,done,complete,", "ann,left,dwell,9.9",
        "ann,read,dwell,45", "ann,lived in,dwell,999", "ann,hidden,like,", "ann,hidden,hide,", "ann,rated,rating,5",
    ]  # fmt: skip
    file = written(tmp_path, "events.csv", "\n".join(["user,item,event,value", *rows]))
    found, _ = read(file, written(tmp_path, "test.csv", GOOD))
    names = dict(enumerate(row.split(",")[1] for row in dict.fromkeys(row.rsplit(",", 2)[0] for row in rows)))
    assert {names[item]: weight for item, weight in zip(found.items.tolist(), found.weights.tolist(), strict=True)} == {
        "opened": 1, "kept": 2, "done": 3, "read": 1.5, "lived in": 3, "rated": 1,
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encoding_and_delimiter_are_found_by_looking(tmp_path: Path, encoding: str, delimiter: str) -> None:
    text = f"user{delimiter}item\r\nann{delimiter}ä\r\n".encode(encoding)
    found, _ = read(written(tmp_path, "sheet.CSV", text), written(tmp_path, "test.csv", "user,item\nann,ä\n"))
    assert (found.users.tolist(), found.items.tolist(), found.shape) == ([0], [0], (1, 1))


@pytest.mark.parametrize("header", ['user,item,"no\nte"', "user,item,a;b;c;d", "a\tuser\titem"])
def test_columns_beside_ours_are_passed_over_whatever_is_in_their_names(tmp_path: Path, header: str) -> None:
    row = "x\tann\ta" if "\t" in header else "ann,a,x"
    file = written(tmp_path, "a.csv.gz", gzip.compress(f"{header}\n{row}\n".encode()))
    found, _ = read(file, written(tmp_path, "test.csv", GOOD))
    assert (found.users.tolist(), found.items.tolist()) == ([0], [0])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("user,thing\nann,a\n", "there are no columns 'user' and 'item'"),
        ("", "there are no columns 'user' and 'item'"),
        ("user,item\nann,\n", "line 2: user and item must not be empty"),
        ("user,item,timestamp\nann,a,1\nann,b,soon\n", "line 3: timestamp 'soon' is no number"),
        ("user,item,timestamp\nann,a,nan\n", "line 2: timestamp 'nan' is no number"),
        ("user,item,event,value\nann,a,dwell,inf\n", "line 2: value 'inf' is no number"),
        ("user,item,event\nann,a,impression\n", "there are no rows of what anybody took to"),
        (b"user,item\nann,\xff\n", "line 2 is not utf-8"),
        (b"user,item\nann," + b"a" * 10_000_001 + b"\n", "field larger than field limit"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    bad = written(tmp_path, "bad.csv", text)
    with pytest.raises(BadFile, match=complaint) as error:
        read(bad, written(tmp_path, "test.csv", GOOD))
    assert str(bad) in str(error.value)


def test_a_test_of_nothing_new_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(written(tmp_path, "same.csv", GOOD))
    monkeypatch.setattr(sys, "argv", ["manage.py feed_eval", "--train", file, "--test", file])
    with pytest.raises(SystemExit, match="no learner of the test did anything that is new to them"):
        main()
