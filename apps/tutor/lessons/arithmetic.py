"""One-step arithmetic, made by code: questions whose every answer is known to be right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Problem:
    """`solution` ends with `answer`, a whole number."""

    question: str
    solution: str
    answer: str


NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fatou", "Goran", "Hana", "Ivan", "Jun", "Kofi", "Lena")
THINGS = ("apples", "pencils", "stickers", "marbles", "books", "coins", "cards", "shells")

SUMS = (
    "What is {a} + {b}?",
    "How much is {a} plus {b}?",
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in one box and {b} in another. How many {things} are there together?",
    "{name} reads {a} pages on Monday and {b} pages on Tuesday. How many pages is that?",
)
DIFFERENCES = (
    "What is {a} - {b}?",
    "How much is {a} minus {b}?",
    "{name} has {a} {things} and gives {b} away. How many {things} are left?",
    "A class has {a} children. {b} are ill today. How many are at school?",
    "A book has {a} pages. {name} has read {b} of them. How many pages are left?",
)
PRODUCTS = (
    "What is {a} times {b}?",
    "What is {a} x {b}?",
    "One bag holds {a} {things}. How many {things} are in {b} bags?",
    "{name} saves {a} euros each week. How many euros is that in {b} weeks?",
    "There are {b} rows with {a} chairs each. How many chairs are there?",
)
QUOTIENTS = (
    "What is {a} divided by {b}?",
    "What is {a} / {b}?",
    "{a} {things} are shared equally among {b} children. How many {things} does each child get?",
    "{name} puts {a} {things} into {b} boxes, the same number in each. How many are in a box?",
    "A ride of {a} km is done in {b} equal parts. How many km is each part?",
)
SHARES = (
    "What is {percent}% of {a}?",
    "How much is {percent} percent of {a}?",
    "A game costs {a} euros. It is reduced by {percent}%. By how many euros is it cheaper?",
    "{percent}% of the {a} children in a school walk to it. How many children walk?",
)


def problems(seed: int, count: int) -> Iterator[Problem]:
    """The same ones for the same seed."""
    random = Random(f"arithmetic {seed}")  # noqa: S311
    for _ in range(count):
        yield random.choice(KINDS)(random)


def addition(random: Random) -> Problem:
    a, b = random.randint(2, 99), random.randint(2, 99)
    return told(random, SUMS, f"{a} + {b} = {a + b}", a + b, a=a, b=b)


def subtraction(random: Random) -> Problem:
    b = random.randint(2, 60)
    a = b + random.randint(2, 60)
    return told(random, DIFFERENCES, f"{a} - {b} = {a - b}", a - b, a=a, b=b)


def multiplication(random: Random) -> Problem:
    a, b = random.randint(2, 25), random.randint(2, 12)
    return told(random, PRODUCTS, f"{a} * {b} = {a * b}", a * b, a=a, b=b)


def division(random: Random) -> Problem:
    b, each = random.randint(2, 12), random.randint(2, 15)
    return told(random, QUOTIENTS, f"{b * each} / {b} = {each}", each, a=b * each, b=b)


def percentage(random: Random) -> Problem:
    percent, a = random.choice((10, 20, 25, 50, 75)), 20 * random.randint(1, 20)
    part = percent * a // 100
    return told(random, SHARES, f"{a} * {percent} / 100 = {part}", part, a=a, percent=percent)


KINDS: tuple[Callable[[Random], Problem], ...] = (addition, subtraction, multiplication, division, percentage)


def told(random: Random, questions: tuple[str, ...], calculation: str, answer: int, **numbers: int) -> Problem:
    words = {"name": random.choice(NAMES), "things": random.choice(THINGS)}
    question = random.choice(questions).format(**words, **numbers)
    return Problem(question, f"{calculation}. The answer is {answer}.", str(answer))
