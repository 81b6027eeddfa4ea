"""What of HTML is kept, and its words. Pure functions."""

import re
from html.parser import HTMLParser

import nh3

TAGS = {
    *("a", "blockquote", "br", "code", "em", "figcaption", "figure", "h2", "h3", "h4", "hr", "img", "li", "ol", "p"),
    *("pre", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    *("math", "mfrac", "mi", "mn", "mo", "mover", "mrow", "mspace", "msqrt", "msub", "msubsup", "msup", "mtable"),
    *("mtd", "mtext", "mtr", "munder"),  # MathML
}
ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt", "width", "height"}, "td": {"colspan"}, "th": {"colspan"}}
PARTING = TAGS - {"a", "code", "em", "strong", "sub", "sup", *(tag for tag in TAGS if tag.startswith("m"))}  # words


def sanitised(html: str) -> str:
    """HTML without scripts, styles, handlers and foreign schemes; text that is none comes back escaped."""
    return nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, url_schemes={"http", "https"}).strip()


def words_of(html: str) -> str:
    """The text of HTML on one line for each block."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = (re.sub(r"\s+", " ", line).strip() for line in "".join(reader.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        self._part(tag)

    def handle_data(self, data: str) -> None:
        self.parts.append(data.replace("\n", " "))

    def _part(self, tag: str) -> None:
        if tag in PARTING:
            self.parts.append("\n")
