"""A book of OpenStax: `collections/*.collection.xml` and `modules/*/index.cnxml`.

CNXML: https://github.com/openstax/cnxml. Each module becomes a lesson, the book a course, its chapters units.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse
from django.utils.html import escape

from apps.content.importers import Record, Unreadable

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
BROKEN = (OSError, ParseError, DefusedXmlException, UnicodeDecodeError, ValueError)


def read(path: Path) -> Iterator[Record]:
    collections = sorted(path.glob("**/*.collection.xml"))
    if not collections:
        raise Unreadable(f"{path} has no *.collection.xml of a book of OpenStax")
    modules = {file.parent.name: file for file in path.glob("**/modules/*/index.cnxml")}
    for file in collections:
        try:
            book = parse(file).getroot()
        except BROKEN as error:
            raise Unreadable(f"{file}: {error}") from error
        yield from _book(file, book, modules)


def _book(file: Path, book: Element, modules: dict[str, Path]) -> Iterator[Record]:
    title = book.findtext(f".//{MDML}title", "").strip()
    slug = book.findtext(f".//{MDML}slug", file.name.partition(".")[0])
    licence = book.find(f".//{MDML}license")
    common = {
        "language": book.findtext(f".//{MDML}language", "en"),
        "author": "OpenStax",
        "licence": licence.get("url", "") if licence is not None else "",
        "tags": [title[:50]],
    }
    units, kept = [], set()
    for name, listed in _chapters(book, title):
        lessons = []
        for module in listed:
            key = f"openstax:{slug}:{module}"
            place = f"modules/{module}/index.cnxml"
            if module not in modules:
                yield Record(place, error="The book names it, and it is not there.")
                continue
            try:
                fields = _lesson(parse(modules[module]).getroot())
            except BROKEN as error:
                yield Record(place, error=str(error))
                continue
            if key not in kept:
                yield Record(place, "item", {"key": key, **fields, **common})
            kept.add(key)
            if key not in lessons:
                lessons.append(key)
        units.append({"title": name, "lessons": lessons})
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
        yield chapter.findtext(f"{MDML}title", "").strip(), modules


def _lesson(document: Element) -> dict[str, object]:
    content = document.find(f"{CNXML}content")
    if content is None:
        raise ValueError("It has no <content>.")
    words = len(" ".join(content.itertext()).split())
    return {
        "title": (document.findtext(f"{CNXML}title") or document.findtext(f".//{MDML}title") or "").strip(),
        "body": "".join(_html(child) for child in content),
        "kind": "lesson",
        "duration": max(60, 60 * words // WORDS_PER_MINUTE),
    }


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
