"""Catalogues, books and tracks from files, by the command that staff type."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.common.sheets import workbook_of
from apps.content.models import Course, Item, Topic

pytestmark = pytest.mark.django_db

TOPIC = {"slug": "math-halves", "name": "Halves", "subject": "math"}
ITEM = {"key": "halves", "title": "Halves", "body": "<p>Two halves.</p>", "subject": "math", "topics": ["math-halves"]}
COURSE = {"key": "course", "title": "Parts", "units": [{"title": "First", "lessons": ["halves"]}]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def run(path: Path, *options: str) -> str:
    said = StringIO()
    call_command("import_content", str(path), *options, stdout=said, stderr=said)
    return said.getvalue()


def test_a_folder_is_kept_whatever_the_order_of_its_files_and_again_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", COURSE)
    write(tmp_path / "2.jsonl", ITEM)
    write(tmp_path / "3.jsonl", TOPIC)
    assert run(tmp_path) == "1 courses added, 1 items added, 1 topics added\n"
    item = Item.objects.get()
    assert (item.title, item.text, [topic.slug for topic in item.topics.all()]) == (
        "Halves",
        "Two halves.",
        ["math-halves"],
    )
    assert [lesson.title for unit in Course.objects.get().units.all() for lesson in unit.lessons.all()] == ["Halves"]
    assert "1 items unchanged" in run(tmp_path)
    write(tmp_path / "2.jsonl", {**ITEM, "title": "Half of it"})
    assert "1 items changed" in run(tmp_path)
    assert (Item.objects.get().id, Item.objects.get().title) == (item.id, "Half of it")


def test_errors_are_told_by_line_and_nothing_is_kept_until_they_may_be_skipped(tmp_path: Path) -> None:
    file = write(
        tmp_path / "items.jsonl", {**ITEM, "topics": []}, {**ITEM, "key": "b", "kind": "song", "topics": []}, [1]
    )
    with file.open("a") as lines:
        lines.write("{broken\n")
    said = StringIO()
    with pytest.raises(CommandError, match="3 errors: nothing was kept"):
        call_command("import_content", str(file), stdout=said, stderr=said)
    assert said.getvalue().splitlines() == [
        'items.jsonl, line 2: kind: "song" is not a valid choice.',
        "items.jsonl, line 3: It is no JSON object.",
        "items.jsonl, line 4: It is not JSON: Expecting property name enclosed in double quotes at line 1, column 2.",
    ]
    assert not Item.objects.exists()
    assert run(file, "--skip-errors").endswith("1 items added\n")
    assert [item.key for item in Item.objects.all()] == ["halves"]


def test_a_dry_run_tells_and_keeps_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", TOPIC, ITEM)
    assert run(file, "--dry-run") == "1 items added, 1 topics added: nothing was kept, as this was a dry run\n"
    assert not Topic.objects.exists()


def test_a_spreadsheet(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text('key,title,subject,tags,duration\na,"One, two",math,sums; easy ,90\nb,Three,,,\nc,Four\n')
    said = StringIO()
    with pytest.raises(CommandError):
        call_command("import_content", str(file), stdout=said, stderr=said)
    assert said.getvalue() == "items.csv, line 4: It does not have the 5 columns of the header.\n"
    run(file, "--skip-errors")
    fields = Item.objects.order_by("key").values_list("key", "title", "subject", "tags", "duration")
    assert list(fields) == [("a", "One, two", "math", ["sums", "easy"], 90), ("b", "Three", "general", [], None)]


def test_sheets_of_every_kind_are_read_and_endings_may_be_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.XLSX").write_bytes(workbook_of(["key", "title", "duration"], [["a", "=One", 90]]))
    (tmp_path / "B.CSV").write_bytes('key;title;tags\r\nb;Zwei ü;"x;y"\r\n'.encode("utf-16"))
    (tmp_path / "C.JSONL").write_bytes(b"\xef\xbb\xbf" + json.dumps({"key": "c", "title": "Three"}).encode())
    (tmp_path / "d.jsonl").write_bytes('{"key": "d", "title": "Vier"}\n'.encode("utf-16-be"))
    (tmp_path / "notes.txt").write_text("not a catalogue")
    assert run(tmp_path) == "4 items added\n"
    fields = Item.objects.order_by("key").values_list("key", "title", "duration", "tags")
    assert list(fields) == [
        ("a", "=One", 90, []),
        ("b", "Zwei ü", None, ["x", "y"]),
        ("c", "Three", None, []),
        ("d", "Vier", None, []),
    ]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.csv", b"key,title,topics\na,One,magic\n", "a.csv, line 2: topics: There is no topic 'magic'."),
        (
            "a.csv",
            b"key,titel\na,One\n",
            "a.csv, line 2: title: This field is required.\na.csv, line 2: titel: Unknown field.",
        ),
        ("a.csv", b"key,title\na,One\na,Two\n", "a.csv, line 3: key: 'a' is that of a.csv, line 2, too."),
        (
            "a.jsonl",
            b'{"key": "a", "title": "One"}\n{"key": "a ", "title": "Two"}',
            "a.jsonl, line 2: key: 'a' is that of a.jsonl, line 1, too.",
        ),
        (
            "a.jsonl",
            b'{"slug": "a", "name": "A", "subject": "math", "parent": "magic"}',
            "a.jsonl, line 1: parent: Object with slug=magic does not exist.",
        ),
        (
            "a.jsonl",
            b'{"slug": "a", "name": "A", "subject": "math"}\n\n{"slug": "a", "name": "B", "subject": "math"}',
            "a.jsonl, line 3: slug: 'a' is that of a.jsonl, line 1, too.",
        ),
        (
            "a.jsonl",
            b'{"key": "c", "title": "C", "units": [{"title": "U"}, {"title": "V", "lessons": ["y"]}]}',
            "a.jsonl, line 1: units.1.lessons: There is no item y.",
        ),
        ("a.jsonl", b'{"key": "a", "title": "A", "title": "B"}', 'a.jsonl, line 1: It has "title" twice in an object.'),
    ],
)
def test_nothing_that_a_catalogue_says_is_passed_over(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    said = StringIO()
    with pytest.raises(CommandError, match="nothing was kept"):
        call_command("import_content", str(tmp_path), stdout=said, stderr=said)
    assert said.getvalue() == f"{error}\n"
    assert (Item.objects.count(), Topic.objects.count(), Course.objects.count()) == (0, 0, 0)


def test_a_bad_byte_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"key,title\na,One\nb,\xff\n")
    with pytest.raises(CommandError, match=r"a\.csv: line 3 is not UTF-8: byte 2 is invalid"):
        run(tmp_path)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "a.jsonl").write_bytes(b'{"key": "a", "title": "A"}\n{"key": "\xff"}\n')
    said = StringIO()
    with pytest.raises(CommandError):
        call_command("import_content", str(tmp_path), stdout=said, stderr=said)
    assert said.getvalue() == "a.jsonl, line 2: It is not UTF-8: byte 9 is invalid.\n"


def test_a_course_keeps_the_lessons_that_are_there_and_the_others_are_named(tmp_path: Path) -> None:
    course = {
        "key": "c",
        "title": "C",
        "units": [{"title": "U", "lessons": ["halves", "gone"]}, {"title": "V", "lessons": []}],
    }
    file = write(tmp_path / "a.jsonl", TOPIC, ITEM, course)
    assert run(file, "--skip-errors").splitlines() == [
        "a.jsonl, line 3: units.0.lessons: There is no item gone.",
        "1 courses added, 1 items added, 1 topics added",
    ]
    assert [[item.key for item in unit.lessons.all()] for unit in Course.objects.get().units.all()] == [["halves"], []]


def test_topics_that_need_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", TOPIC, {**TOPIC, "slug": "math-b", "prerequisites": ["math-halves"]})
    run(tmp_path)
    write(tmp_path / "1.jsonl", {**TOPIC, "prerequisites": ["math-b"]})
    with pytest.raises(CommandError, match="1 errors"):
        run(tmp_path)
    assert not Topic.objects.get(slug="math-halves").prerequisites.exists()


def test_what_is_not_there_or_of_another_format_is_said(tmp_path: Path) -> None:
    for format_, text in (
        ("catalogue", "has no file that ends in .jsonl"),
        ("exercism", "is no config.json"),
        ("openstax", r"has no \*.collection.xml"),
    ):
        with pytest.raises(CommandError, match=text):
            run(tmp_path, "--format", format_)


TRACK: dict[str, Any] = {
    "language": "Snake",
    "slug": "snake",
    "concepts": [{"slug": "loops", "name": "Loops"}, {"slug": "basics", "name": "Basics"}],
    "exercises": {
        "concept": [
            {"slug": "hiss", "name": "Hiss", "concepts": ["basics"], "prerequisites": []},
            {"slug": "coil", "name": "Coil", "concepts": ["loops"], "prerequisites": ["basics"]},
        ],
        "practice": [
            {"slug": "long", "name": "Long", "practices": ["loops"], "prerequisites": [], "difficulty": 7},
            {"slug": "old", "name": "Old", "practices": [], "prerequisites": [], "status": "deprecated"},
        ],
    },
}


def test_a_track_of_exercism(tmp_path: Path) -> None:
    write(tmp_path / "config.json", TRACK)
    docs = tmp_path / "exercises" / "practice" / "long" / ".docs"
    docs.mkdir(parents=True)
    (docs / "instructions.md").write_text("# Long\n\nWrite a *loop*.<script>evil()</script>\n")
    run(tmp_path, "--format", "exercism")
    assert list(Topic.objects.values_list("slug", "prerequisites__slug").order_by("slug")) == [
        ("snake-basics", None),
        ("snake-loops", "snake-basics"),
    ]
    items = {item.key: item for item in Item.objects.all()}
    assert set(items) == {f"exercism:snake:{slug}" for slug in ("hiss", "coil", "long")}
    long = items["exercism:snake:long"]
    assert (long.level, long.kind, [topic.slug for topic in long.topics.all()]) == (
        "advanced",
        "exercise",
        ["snake-loops"],
    )
    assert long.text == "Long\nWrite a loop.<script>evil()</script>"  # shown as text, not run
    assert "<script>" not in long.body


def test_nothing_that_a_track_says_is_passed_over(tmp_path: Path) -> None:
    concept, practice = TRACK["exercises"]["concept"], TRACK["exercises"]["practice"]
    track = {
        **TRACK,
        "concepts": [*TRACK["concepts"], {"slug": "loops", "name": "Rings"}],
        "exercises": {
            "concept": [*concept, {"slug": "bite", "name": "Bite", "concepts": ["jaws"], "prerequisites": ["teeth"]}],
            "practice": [*practice, {**practice[0], "slug": "hiss"}, practice[0], {**practice[0], "practices": ["x"]}],
        },
    }
    write(tmp_path / "config.json", track)
    said = run(tmp_path, "--format", "exercism", "--skip-errors")
    assert said.splitlines() == [
        "config.json, concept 'loops': slug: 'loops' is that of 2 concepts.",
        "config.json, concept exercise 3, 'bite': The track defines no concept 'jaws', 'teeth'.",
        "config.json, practice exercise 3, 'hiss': key: 'exercism:snake:hiss' is that of config.json, "
        "concept exercise 1, 'hiss', too.",
        "config.json, practice exercise 4, 'long': key: 'exercism:snake:long' is that of config.json, "
        "practice exercise 1, 'long', too.",
        "config.json, practice exercise 5, 'long': The track defines no concept 'x'.",
        "3 items added, 2 topics added",
    ]


COLLECTION = """<col:collection xmlns:col="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml">
<col:metadata><md:title>Snakes</md:title><md:slug>snakes</md:slug><md:language>en</md:language>
<md:license url="http://creativecommons.org/licenses/by/4.0/"/></col:metadata>
<col:content><col:module document="m1"/><col:subcollection><md:title>Loops</md:title>
<col:content><col:module document="m2"/><col:module document="m3"/></col:content></col:subcollection></col:content>
</col:collection>"""
MODULE = """<document xmlns="http://cnx.rice.edu/cnxml"><title>{}</title><content>
<section><title>Why</title><para>Say <code class="inline-code">hiss()</code> &amp; <term>coil</term>.</para></section>
<code>while True:
    hiss()</code><media><iframe src="x"/></media><list list-type="enumerated"><item>one</item></list>
<m:math xmlns:m="http://www.w3.org/1998/Math/MathML"><m:mi>x</m:mi></m:math>
</content></document>"""


def test_a_book_of_openstax(tmp_path: Path) -> None:
    (tmp_path / "collections").mkdir()
    (tmp_path / "collections" / "snakes.collection.xml").write_text(COLLECTION)
    for module, title in (("m1", "Preface"), ("m2", "While")):
        folder = tmp_path / "modules" / module
        folder.mkdir(parents=True)
        (folder / "index.cnxml").write_text(MODULE.format(title))
    with pytest.raises(CommandError, match="1 errors"):
        run(tmp_path, "--format", "openstax")
    said = run(tmp_path, "--format", "openstax", "--subject", "programming", "--skip-errors")
    assert said.splitlines() == [
        "modules/m3/index.cnxml: The book names it, and it is not there.",
        "1 courses added, 2 items added",
    ]
    lesson = Item.objects.get(key="openstax:snakes:m2")
    assert lesson.body == (
        "<h2>Why</h2><p>Say <code>hiss()</code> &amp; <strong>coil</strong>.</p>\n"
        "<pre><code>while True:\n    hiss()</code></pre><ol><li>one</li></ol>\n<math><mi>x</mi></math>"
    )
    assert (lesson.title, lesson.subject, lesson.licence) == (
        "While",
        "programming",
        "http://creativecommons.org/licenses/by/4.0/",
    )
    units = Course.objects.get().units.all()
    assert [(unit.title, [item.title for item in unit.lessons.all()]) for unit in units] == [
        ("Snakes", ["Preface"]),
        ("Loops", ["While"]),
    ]


LONG = """<document xmlns="http://cnx.rice.edu/cnxml"><title>Long</title><content><para>First.</para>{}</content></document>"""


def book(folder: Path, **modules: str) -> Path:
    (folder / "collections").mkdir()
    collection = COLLECTION.replace('<col:module document="m3"/>', '<col:module document="m2"/>')
    (folder / "collections" / "snakes.COLLECTION.XML").write_text(collection)
    for name, text in {"m1": MODULE.format("Preface"), **modules}.items():
        (folder / "modules" / name).mkdir(parents=True)
        (folder / "modules" / name / "index.cnxml").write_text(text)
    return folder


def lessons() -> dict[str, list[str]]:
    return {unit.title: [place.item.key for place in unit.places.all()] for unit in Course.objects.get().units.all()}


def test_a_module_that_is_too_long_is_parted_at_its_sections(tmp_path: Path) -> None:
    sections = "".join(
        f"<section><title>S{n}</title><para>{'word ' * 15_000}</para></section>tail{n}" for n in range(5)
    )
    said = run(book(tmp_path, m2=LONG.format(sections)), "--format", "openstax", "--subject", "programming")
    assert said == "1 courses added, 4 items added\n"
    keys = [f"openstax:snakes:m2:{n}" for n in (1, 2, 3)]
    assert lessons() == {"Snakes": ["openstax:snakes:m1"], "Loops": keys}
    items = [Item.objects.get(key=key) for key in keys]
    assert [item.title for item in items] == [f"Long ({n} of 3)" for n in (1, 2, 3)]
    assert [[n for n in range(5) if f"<h2>S{n}</h2>" in item.body] for item in items] == [[0, 1], [2, 3], [4]]
    whole = "".join(item.text.replace("\n", " ") for item in items)
    assert [whole.count(f"S{n} word") for n in range(5)] == [1] * 5
    assert [whole.count(f"tail{n}") for n in range(5)] == [1] * 5
    assert whole.count("word") == 75_000
    assert "unchanged" in run(tmp_path, "--format", "openstax", "--subject", "programming")


def test_a_section_that_is_too_long_is_parted_too_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    long = f"<note><para>{'word ' * 30_000}</para><para>{'other ' * 20_000}</para></note>"
    vast = f"<section><title>Vast</title>{long}<para>{'x' * 250_000}</para><para>End.</para></section>"
    said = run(book(tmp_path, m2=LONG.format(vast)), "--format", "openstax", "--skip-errors")
    assert said.splitlines() == [
        "modules/m2/index.cnxml, part 3 of 4: body: "
        "Ensure this field has no more than 200000 characters; it has 250007.",
        "snakes.COLLECTION.XML: units.1.lessons: There is no item openstax:snakes:m2:3.",
        "1 courses added, 4 items added",
    ]
    assert lessons()["Loops"] == [f"openstax:snakes:m2:{n}" for n in (1, 2, 4)]
    assert Item.objects.get(key="openstax:snakes:m2:4").text == "End."


def test_a_book_without_titles_and_with_many_modules_is_a_course_all_the_same(tmp_path: Path) -> None:
    many = "".join(f'<col:module document="m{n}"/>' for n in range(510))
    text = f"""<col:collection xmlns:col="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml">
    <col:content><col:subcollection><col:content>{many}</col:content></col:subcollection></col:content></col:collection>"""
    (tmp_path / "big.collection.xml").write_text(text)
    for n in range(510):
        (tmp_path / "modules" / f"m{n}").mkdir(parents=True)
        (tmp_path / "modules" / f"m{n}" / "index.cnxml").write_text(LONG.format("").replace("Long", ""))
    assert run(tmp_path, "--format", "openstax").endswith("1 courses added, 510 items added\n")
    assert {title: len(keys) for title, keys in lessons().items()} == {"big": 500, "big (2)": 10}
    assert Item.objects.get(key="openstax:big:m7").title == "openstax:big:m7"


def test_an_xml_bomb_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE b [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><document>&b;</document>'
    (tmp_path / "x.collection.xml").write_text(bomb)
    with pytest.raises(CommandError, match="EntitiesForbidden"):
        run(tmp_path, "--format", "openstax")


def test_the_catalogue_of_the_demo() -> None:
    said = StringIO()
    call_command("import_content", stdout=said)
    assert said.getvalue() == "3 courses added, 222 items added, 63 topics added\n"
    teaching = Item.objects.exclude(key__startswith="fun-")
    subjects = ("math", "physics", "chemistry", "biology", "programming", "study")
    assert all(teaching.filter(subject=subject).count() >= 24 for subject in subjects)
    assert teaching.filter(topics=None).count() == 0
    assert (teaching.count(), Item.objects.count() - teaching.count()) == (156, 66)
    assert Item.objects.values("title").distinct().count() == 222
    again = StringIO()
    call_command("import_content", stdout=again)
    assert again.getvalue() == "3 courses unchanged, 222 items unchanged, 63 topics unchanged\n"
