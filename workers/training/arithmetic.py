"""Which numbers a text states, and whether its calculations are right: exactly, in time linear in the text.

(math-verify reads more notations, but a reply such as 9**9**9**9 keeps it busy for ever where there are no signals.)
"""

import re
from fractions import Fraction

SIGNS = str.maketrans({"\u2212": "-", "\u00d7": "*", "\u00f7": "/", "\u2044": "/"})
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})(?:\.\d{1,40})?"
NUMBER = re.compile(rf"(?<![\w.])(-?)\$?(?:(\d{{1,9}})\s+(?=\d+\s*/\s*\d))?({DIGITS})(?:\s*/\s*(\d{{1,40}})(?![\d.]))?")
TERM = re.compile(rf"([-+*/x]?)\s*\$?({DIGITS})")
EQUATION = re.compile(rf"(\$?{DIGITS}(?:\s*[-+*/x]\s*\$?{DIGITS})+)\s*=\s*\$?({DIGITS})")
OPERATORS = tuple("-+*/x^%")


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, in order: 1,200 and $1200.00 are 1200, 2 1/2 is five halves.

    A division that comes out even, such as 12/4, is a calculation: it states its two numbers and not the result.
    """
    found = []
    for minus, whole, digits, divisor in NUMBER.findall(text.translate(SIGNS)):
        stated = [exact(part) for part in (whole, digits, divisor) if part]
        if divisor and (quotient := _quotient(stated[-2], stated[-1])) is not None and quotient.denominator > 1:
            stated = [sum(stated[:-2], quotient)]
        found += [-stated[0] if minus else stated[0], *stated[1:]]
    return found


def states(text: str, answer: str) -> bool:
    """Whether the answer is in the text: as an equal number or, where it is none, word for word."""
    if _is_number(answer):
        return numbers(answer)[0] in numbers(text)
    return f" {_words(answer)} " in f" {_words(text)} "


def concludes(text: str, answer: str) -> bool:
    """Whether the last number in the text is the answer or, where that is none, its last words."""
    if _is_number(answer):
        return numbers(text)[-1:] == numbers(answer)
    return f" {_words(text)}".endswith(f" {_words(answer)}")


def calculates(text: str) -> bool:
    """Whether every equation of plain numbers in it holds; a result that has decimals may be rounded."""
    text = text.translate(SIGNS)
    for found in EQUATION.finditer(text):
        before, after = text[: found.start()].rstrip()[-1:], text[found.end() :].lstrip()[:1]
        if before in (")", *OPERATORS) or after in OPERATORS:
            continue  # a part of something longer
        value, stated = _value(found[1]), exact(found[2])
        decimals = len(found[2].partition(".")[2])
        if value is None or abs(value - stated) > (Fraction(1, 2 * 10**decimals) if decimals else 0):
            return False
    return True


def exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _is_number(answer: str) -> bool:
    return len(numbers(answer)) == 1 and not re.search(r"[^\W\d]", answer)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w+*/^=<>.-]*\w", text.casefold()))


def _value(expression: str) -> Fraction | None:
    """Of sums and products without parentheses; None where it divides by zero."""
    total, term = Fraction(0), Fraction(0)
    for operator, digits in TERM.findall(expression):
        factor = exact(digits)
        if operator in ("*", "x"):
            term *= factor
        elif operator == "/":
            if (quotient := _quotient(term, factor)) is None:
                return None
            term = quotient
        else:
            total, term = total + term, -factor if operator == "-" else factor
    return total + term


def _quotient(dividend: Fraction, divisor: Fraction) -> Fraction | None:
    return dividend / divisor if divisor else None
