"""Dialogues in which a hint is asked for, made by code: the answer is known, and no hint gives it away."""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from apps.tutor.lessons.sources import ASKS, Dialogue, numbers


class Sheet(NamedTuple):
    """A problem, hints that lead to its answer one by one, and the answer."""

    problem: str
    hints: tuple[str, ...]
    answer: float


WRONG_TRIES = ("Is it {slip}?", "I get {slip}.", "My answer is {slip}.", "{slip}?")
CORRECTIONS = (
    "Not quite, but it is good that you tried. {hint}",
    "{slip} is not right yet. {hint} Try once more.",
    "Let's look at it again. {hint}",
)
MORE = ("I still don't know. One more hint?", "Okay, and then?", "And now?", "Can I have another hint?")


def hints(seed: int, count: int) -> Iterator[Dialogue]:
    """The same ones for the same seed."""
    random = Random(f"hints {seed}")  # noqa: S311
    while count:
        sheet = random.choice(KINDS)(random)
        answer = f"{sheet.answer:.10g}"
        if answer in numbers(" ".join(sheet.hints)):
            continue
        yield _dialogue(sheet, answer, random)
        count -= 1


def _dialogue(sheet: Sheet, answer: str, random: Random) -> Dialogue:
    ask = random.choice(ASKS)
    question = random.choice((f"{sheet.problem} {ask}", f"{sheet.problem}\n{ask}", f"{ask} {sheet.problem}"))
    messages = [_said("user", question), _said("assistant", sheet.hints[0])]
    turn = random.random()
    if turn < 0.2:
        messages += [_said("user", random.choice(MORE)), _said("assistant", sheet.hints[1])]
    elif turn < 0.4:
        slip = f"{sheet.answer + random.choice((-3, -2, -1, 1, 2, 3, 10)):.10g}"
        correction = random.choice(CORRECTIONS).format(slip=slip, hint=sheet.hints[1])
        messages += [_said("user", random.choice(WRONG_TRIES).format(slip=slip)), _said("assistant", correction)]
    return Dialogue(messages, answer)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def equation(random: Random) -> Sheet:
    x, a, b = random.randint(2, 12), random.randint(2, 9), random.randint(1, 20)
    return Sheet(
        random.choice((f"Solve {a}x + {b} = {a * x + b}.", f"What is x in {a}x + {b} = {a * x + b}?")),
        (
            f"You want x alone. What happens if you subtract {b} on both sides?",
            f"First take {b} away from {a * x + b}. Then think: {a} times which number makes that?",
        ),
        x,
    )


def discount(random: Random) -> Sheet:
    percent, price = random.choice((10, 20, 25, 30, 50)), 20 * random.randint(2, 15)
    return Sheet(
        f"A jacket costs {price} euros. It is reduced by {percent}%. What does it cost now?",
        (
            f"Find first how much cheaper it gets: what is {percent}% of {price}?",
            f"{percent}% means {percent} out of 100. Work out that part of {price}, and take it off the price.",
        ),
        price * (100 - percent) / 100,
    )


def rectangle(random: Random) -> Sheet:
    a, b = random.randint(3, 20), random.randint(3, 20)
    return Sheet(
        f"A garden is {a} m long and {b} m wide. How long is a fence all around it?",
        (
            "Draw the garden. How many sides has it, and which of them are equally long?",
            f"Two sides are {a} m and two are {b} m. How can you add them up?",
        ),
        2 * (a + b),
    )


def average(random: Random) -> Sheet:
    mean = random.randint(6, 30)
    d, e = random.randint(1, 5), random.randint(1, 5)
    marks = (mean - d, mean + d + e, mean - e)
    return Sheet(
        f"What is the average of {marks[0]}, {marks[1]} and {marks[2]}?",
        (
            "An average shares the total out equally. What do you get if you add all the numbers?",
            "Add them first. How many numbers are there? Divide the sum by that.",
        ),
        mean,
    )


def journey(random: Random) -> Sheet:
    speed, hours = 5 * random.randint(2, 24), random.randint(2, 9)
    return Sheet(
        f"A train goes {speed} km in one hour. How far does it go in {hours} hours?",
        (
            "How far does it go in 2 hours? Can you see the pattern?",
            f"Distance is speed times time. Which two numbers do you multiply, if the speed is {speed} km/h?",
        ),
        speed * hours,
    )


def change(random: Random) -> Sheet:
    each, many = random.randint(2, 6), random.randint(2, 7)
    paid = 50
    return Sheet(
        f"{random.choice(('Mia', 'Omar', 'Lea', 'Tom'))} buys {many} notebooks for {each} euros each and pays with a "
        f"{paid} euro note. How much change is given?",
        (
            f"Begin with the price of all notebooks. What do {many} of them cost?",
            f"Work out {many} times {each}. Then compare it with the {paid} euros.",
        ),
        paid - each * many,
    )


def fraction(random: Random) -> Sheet:
    below = random.choice((3, 4, 5, 8))
    above, part = random.randint(2, below - 1), random.randint(2, 12)
    return Sheet(
        f"What is {above}/{below} of {below * part}?",
        (
            f"Cut {below * part} into {below} equal parts first. How big is one part?",
            f"Find 1/{below} of {below * part}. The {above} above the line tells how many such parts you need.",
        ),
        above * part,
    )


def sequence(random: Random) -> Sheet:
    start, step = random.randint(1, 20), random.randint(3, 12)
    terms = [start + step * i for i in range(4)]
    return Sheet(
        f"Which number comes next: {', '.join(map(str, terms))}?",
        (
            f"Look at the gaps. How do you get from {terms[0]} to {terms[1]}?",
            f"Compare {terms[1]} and {terms[2]} too. Is the gap always the same? What does that say about the next one?",
        ),
        start + step * 4,
    )


def ages(random: Random) -> Sheet:
    young, gap = random.randint(4, 15), random.randint(2, 9)
    return Sheet(
        f"Nora is {gap} years older than Paul. Together they are {2 * young + gap} years old. How old is Paul?",
        (
            f"Imagine Nora were as old as Paul. By how much would the {2 * young + gap} years become less?",
            f"Take the {gap} years off the total. Then both have the same share of what is left.",
        ),
        young,
    )


def minutes(random: Random) -> Sheet:
    hours, rest = random.randint(2, 6), random.randint(5, 55)
    return Sheet(
        f"How many minutes are {hours} hours and {rest} minutes?",
        (
            "How many minutes has one hour?",
            f"Turn the {hours} hours into minutes first, and add the {rest} minutes last.",
        ),
        hours * 60 + rest,
    )


def force(random: Random) -> Sheet:
    mass, acceleration = random.randint(2, 20), random.randint(2, 9)
    return Sheet(
        f"A cart of {mass} kg speeds up by {acceleration} m/s² . Which force is needed, in newtons?".replace(" .", "."),
        (
            "Which law ties force, mass and acceleration together?",
            f"Newton's second law is F = m a. Which of your numbers is m? The {mass} kg or the other one?",
        ),
        mass * acceleration,
    )


def atoms(random: Random) -> Sheet:
    molecules = random.randint(3, 12)
    return Sheet(
        f"How many hydrogen atoms are in {molecules} molecules of water, H2O?",
        (
            "Look at the formula H2O. What does the small number behind the H tell you?",
            f"Count the hydrogen atoms of one molecule. There are {molecules} such molecules.",
        ),
        2 * molecules,
    )


def printed(random: Random) -> Sheet:
    start, end = random.randint(1, 4), random.randint(6, 9)
    return Sheet(
        f"What does print(sum(range({start}, {end}))) print in Python?",
        (
            f"Write down the numbers of range({start}, {end}). Is the last one, {end}, among them?",
            f"The range begins at {start} and stops before {end}. Add up the numbers that are left.",
        ),
        sum(range(start, end)),
    )


KINDS: tuple[Callable[[Random], Sheet], ...] = (
    equation,
    discount,
    rectangle,
    average,
    journey,
    change,
    fraction,
    sequence,
    ages,
    minutes,
    force,
    atoms,
    printed,
)
