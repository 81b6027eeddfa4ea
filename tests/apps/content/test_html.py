import pytest

from apps.content.html import sanitised, words_of


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<p>a <em>b</em></p>", "<p>a <em>b</em></p>"),
        ("1 < 2 & 3", "1 &lt; 2 &amp; 3"),
        ("<script>evil()</script>a", "a"),
        ("<style>p {}</style>a", "a"),
        ('<img src="x" onerror="evil()">', '<img src="x">'),
        ('<img src="data:text/html,evil">', "<img>"),
        ('<iframe src="https://example.org"></iframe>a', "a"),
        ("<svg><script>evil()</script></svg>a", "a"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup></math>", "<math><msup><mi>x</mi><mn>2</mn></msup></math>"),
        ("<p>open", "<p>open</p>"),
    ],
)
def test_what_is_kept_of_html(html: str, kept: str) -> None:
    assert sanitised(html) == kept
    assert sanitised(kept) == kept


def test_the_words_of_a_text() -> None:
    html = "<h2>Light</h2><p>E = mc<sup>2</sup>, and\n  1 &lt; 2</p><ul><li>one</li><li><em>t</em>wo</li></ul>"
    assert words_of(html) == "Light\nE = mc2, and 1 < 2\none\ntwo"
    assert words_of("") == ""
