"""A book of OpenStax: `collections/*.collection.xml` and `modules/*/index.cnxml`.

CNXML: https://github.com/openstax/cnxml. Each module becomes a lesson, the book a course, its chapters units. A module
that is too long for one lesson becomes several, each of as many of its sections as fit; a section that is too long is
parted in the same way, down to its paragraphs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse
from django.utils.html import escape

from apps.content.html import words_of
from apps.content.importers import Record, Unreadable
from apps.content.models import BODY, DAY_S, LESSONS, TITLE

CNXML = "{http://cnx.rice.edu/cnxml}"
MDML = "{http://cnx.rice.edu/mdml}"
COLLXML = "{http://cnx.rice.edu/collxml}"
MATHML = "{http://www.w3.org/1998/Math/MathML}"
TAGS = {  # of CNXML -> of HTML; what is not here is passed through to its children
    "para": "p",
    "list": "ul",
    "item": "li",
    "emphasis": "em",
    "term": "strong",
    "quote": "blockquote",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "row": "tr",
    "entry": "td",
    "sub": "sub",
    "sup": "sup",
    "figure": "figure",
    "caption": "figcaption",
    "preformat": "pre",
}
DROPPED = {"metadata", "media", "iframe", "label"}  # what does not read as text
WORDS_PER_MINUTE = 200
BROKEN = (OSError, ParseError, DefusedXmlException, UnicodeDecodeError, ValueError, RecursionError)


def read(path: Path) -> Iterator[Record]:
    collections = _named(path, ".collection.xml")
    if not collections:
        raise Unreadable(f"{path} has no *.collection.xml of a book of OpenStax")
    modules = {file.parent.name: file for file in _named(path, "index.cnxml") if file.parts[-3:-2] == ("modules",)}
    for file in collections:
        try:
            book = parse(file).getroot()
        except BROKEN as error:
            raise Unreadable(f"{file}: {error}") from error
        yield from _book(file, book, modules)


def _named(path: Path, ending: str) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.name.lower().endswith(ending) and file.is_file())


def _book(file: Path, book: Element, modules: dict[str, Path]) -> Iterator[Record]:
    slug = book.findtext(f".//{MDML}slug", file.name.partition(".")[0])
    title = (book.findtext(f".//{MDML}title", "").strip() or slug)[:TITLE]
    licence = book.find(f".//{MDML}license")
    common = {
        "language": book.findtext(f".//{MDML}language", "en"),
        "author": "OpenStax",
        "licence": licence.get("url", "") if licence is not None else "",
        "tags": [title[:50]],
    }
    units: list[dict[str, Any]] = []
    parts: dict[str, list[str]] = {}  # keys of the lessons of each module
    for name, listed in _chapters(book, title):
        lessons: list[str] = []
        for module in listed:
            key = f"openstax:{slug}:{module}"
            place = f"modules/{module}/index.cnxml"
            if module not in modules:
                yield Record(place, error="The book names it, and it is not there.")
                continue
            if key not in parts:
                try:
                    made = _lessons(key, parse(modules[module]).getroot())
                except BROKEN as error:
                    made = []
                    yield Record(place, error=str(error) or repr(error))
                for number, fields in enumerate(made, start=1):
                    whole = place if len(made) == 1 else f"{place}, part {number} of {len(made)}"
                    yield Record(whole, "item", {**fields, **common})
                parts[key] = [fields["key"] for fields in made]
            lessons += [part for part in parts[key] if part not in lessons]
        for first in range(0, max(len(lessons), 1), LESSONS):
            continued = f" ({first // LESSONS + 1})" if first else ""
            units.append({"title": f"{name[: TITLE - 10]}{continued}", "lessons": lessons[first : first + LESSONS]})
    course = {"key": f"openstax:{slug}", "title": title, "language": common["language"], "units": units}
    yield Record(file.name, "course", course)


def _chapters(book: Element, title: str) -> Iterator[tuple[str, list[str]]]:
    """Title and modules of each; modules that are in no chapter are a chapter named as the book."""
    content = book.find(f"{COLLXML}content")
    if content is None:
        raise Unreadable("a collection.xml has no content")
    if loose := [one.get("document", "") for one in content.findall(f"{COLLXML}module")]:
        yield title, loose
    for chapter in content.findall(f"{COLLXML}subcollection"):
        modules = [one.get("document", "") for one in chapter.iter(f"{COLLXML}module")]
        yield chapter.findtext(f"{MDML}title", "").strip() or title, modules


def _lessons(key: str, document: Element) -> list[dict[str, Any]]:
    """The lessons of a module: one, or parts of it that are short enough."""
    content = document.find(f"{CNXML}content")
    if content is None:
        raise ValueError("It has no <content>.")
    name = (document.findtext(f"{CNXML}title") or document.findtext(f".//{MDML}title") or "").strip() or key
    bodies = _bodies(content)
    return [
        {
            "key": key if len(bodies) == 1 else f"{key}:{number}",
            "title": name[:TITLE] if len(bodies) == 1 else f"{name[: TITLE - 20]} ({number} of {len(bodies)})",
            "body": body,
            "kind": "lesson",
            "duration": max(60, min(60 * len(words_of(body).split()) // WORDS_PER_MINUTE, DAY_S)),
        }
        for number, body in enumerate(bodies, start=1)
    ]


def _bodies(content: Element) -> list[str]:
    """The HTML of a module, parted where it is longer than a body may be."""
    bodies = [""]
    for piece in _pieces(content, level=1):
        if len(bodies[-1]) + len(piece) <= BODY:
            bodies[-1] += piece
        else:
            bodies.append(piece)
    return [body for body in bodies if body.strip()] or [""]


def _pieces(element: Element, level: int) -> Iterator[str]:
    """What is in an element, in pieces that fit. What cannot be parted is too long, and is refused where it is kept."""
    yield escape(element.text or "")
    for child in element:
        html = _html(child, level)
        if len(html) > BODY and _has_no_tag(child):
            yield from _pieces(child, level + (child.tag == f"{CNXML}section"))
            yield escape(child.tail or "")
        else:
            yield html


def _has_no_tag(element: Element) -> bool:
    """Whether nothing is left of it in HTML but what is in it: sections, notes, examples, exercises."""
    namespace, _, name = element.tag.rpartition("}")
    return f"{namespace}}}" == CNXML and name not in {*TAGS, *DROPPED, "title", "code", "newline"}


def _html(element: Element, level: int = 1) -> str:
    """An element and what follows it, as HTML."""
    namespace, _, name = element.tag.rpartition("}")
    deeper = level + (name == "section")
    if name in DROPPED:
        return escape(element.tail or "")
    inner = escape(element.text or "") + "".join(_html(child, deeper) for child in element)
    if f"{namespace}}}" == MATHML:
        inner = f"<{name}>{inner}</{name}>"
    elif name == "title":
        tag = f"h{min(max(level, 2), 4)}"
        inner = f"<{tag}>{inner}</{tag}>" if inner.strip() else ""
    elif name == "code":
        inner = f"<code>{inner}</code>" if "inline-code" in element.get("class", "") else _block(inner)
    elif name == "newline":
        inner = "<br>"
    elif name in TAGS:
        tag = "ol" if name == "list" and element.get("list-type") == "enumerated" else TAGS[name]
        inner = f"<{tag}>{inner}</{tag}>"
    return inner + escape(element.tail or "")


def _block(code: str) -> str:
    return f"<pre><code>{code.strip()}</code></pre>" if "\n" in code.strip() else f"<code>{code.strip()}</code>"
