"""Public data that the tutor learns from, read from their published files, which are not kept here.

GSM8K (arXiv:2110.14168, MIT): word problems with worked solutions. Bridge (arXiv:2310.10648, MIT): what experts would
say to a learner who has made a mistake.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

Messages = list[dict[str, Any]]

HELD_OUT = 300  # word problems that are kept apart to judge by
CALCULATION = re.compile(r"<<(.*?)=(.*?)>>")
STEP = re.compile(r"([\d.,$+\-*/x() %]*\d[\d.,$+\-*/x() %]*?) ?= ?\$?<<([^<>=]*)=([\d.]+)>>[\d.,]+")


@dataclass(frozen=True, slots=True)
class WordProblem:
    """`solution` has a line for each step, with calculator marks; `answer` is a number."""

    question: str
    solution: str
    answer: str

    @property
    def text(self) -> str:
        return CALCULATION.sub("", self.solution)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages of which the last is learnt. Where a hint was asked for, `answer` is what it must not give away."""

    messages: Messages
    answer: str | None = None


def word_problems(path: Path) -> tuple[list[WordProblem], list[WordProblem]]:
    """GSM8K's problems to learn from, and those held out: the first by their hash, whatever is in the file."""
    problems = []
    for row in _rows(path):
        solution, _, answer = row["answer"].rpartition("\n#### ")
        problems.append(WordProblem(row["question"].strip(), solution.strip(), answer.replace(",", "").strip()))
    problems.sort(key=lambda problem: sha256(problem.question.encode()).hexdigest())
    return problems[HELD_OUT:], problems[:HELD_OUT]


ASKS = (
    "Can you give me a hint?",
    "I am stuck. Where do I start?",
    "Please don't tell me the answer, just give me a hint.",
    "How should I begin?",
    "Give me a hint, not the answer.",
    "What is the first step?",
    "I don't know how to start. Help me a little.",
    "hint please",
)
HINTS = (
    "Let's take it one step at a time. {step} What does {expression} make?",
    "Here is a way to begin. {step} Work out {expression}, and then think about what it tells you.",
    "Good problem to try! Start here: {step} What do you get?",
    "Look at the first thing you can find out. {step} Can you work out {expression}?",
    "Try this first. {step} Tell me what {expression} is, and we go on from there.",
    "One hint: {step} Calculate {expression} first.",
)
TRIES = (
    "I get {value}.",
    "Is it {value}?",
    "{value}",
    "So that is {value}.",
    "I think {expression} = {value}. What now?",
)
RIGHT = (
    "Yes, {value} is right. Now the next step: {step} What does {expression} make?",
    "Well done, {value} is correct! Go on like this: {step}",
    "That's it, {value}. Next: {step} Can you work out {expression}?",
)
WRONG = (
    "Not quite, but you are on the way. Look again at {expression}: do it slowly, and check each digit.",
    "Close, but {value} is not right. Try {expression} once more. What do you get?",
    "Let's check that together. What is {expression}? Write it down step by step.",
)


def hint_dialogues(problems: list[WordProblem], random: Random) -> Iterator[Dialogue]:
    """Of each problem of several steps a dialogue in which the tutor helps with one of them, and not with the last."""
    for problem in problems:
        steps = [(STEP.search(line), line) for line in problem.solution.splitlines()]
        steps = steps[: next((i for i, (found, _) in enumerate(steps) if found is None), len(steps) - 1)]
        if steps and (dialogue := _hint_dialogue(problem, steps, random)):
            yield dialogue


def _hint_dialogue(problem: WordProblem, steps: list[tuple[Any, str]], random: Random) -> Dialogue | None:
    ask = random.choice(ASKS)
    question = random.choice((f"{problem.question}\n{ask}", f"{problem.question} {ask}", f"{ask} {problem.question}"))
    messages: Messages = [{"role": "user", "content": question}, _assistant(random.choice(HINTS), *_open(*steps[0]))]
    turn = random.random()
    value = steps[0][0][3]
    if turn < 0.25 and len(steps) > 1:
        _, expression = _open(*steps[0])
        messages.append({"role": "user", "content": random.choice(TRIES).format(value=value, expression=expression)})
        messages.append(_assistant(random.choice(RIGHT), *_open(*steps[1]), value=value))
    elif turn < 0.45:
        slip = f"{float(value) + random.choice((-10, -2, -1, 1, 2, 10)):g}"
        _, expression = _open(*steps[0])
        messages.append({"role": "user", "content": random.choice(TRIES).format(value=slip, expression=expression)})
        messages.append(_assistant(random.choice(WRONG), *_open(*steps[0]), value=slip))
    said = " ".join(message["content"] for message in messages if message["role"] == "assistant")
    return None if numbers(problem.answer) & numbers(said) else Dialogue(messages, problem.answer)


def _open(found: Any, line: str) -> tuple[str, str]:
    """A step of a solution without its result, as a sentence; and what is to be calculated."""
    sentence = CALCULATION.sub("", STEP.sub(lambda step: step[1], line)).strip()
    return _sentence(sentence), found[2].strip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _assistant(template: str, step: str, expression: str, value: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": template.format(step=step, expression=expression, value=value)}


def numbers(text: str) -> set[str]:
    """The numbers that a text names, without separators of thousands and zeros at their ends."""
    return {f"{float(found.replace(',', '')):.10g}" for found in re.findall(r"\d[\d,]*\.?\d*", text)}


def corrections(path: Path) -> Iterator[Dialogue]:
    """Of each of Bridge's excerpts: what the learner was asked and said, and what an expert would reply."""
    for row in _rows(path):
        asked = " ".join(turn["text"] for turn in row["c_h"] if turn["user"] == "tutor")
        said = " ".join(turn["text"] for turn in row["c_h"] if turn["user"] == "student")
        reply = " ".join(_sentence(turn["text"].strip()) for turn in row["c_r_"] if turn["user"] == "tutor")
        is_question = "?" in asked and "final answer?" not in asked
        if is_question and said and len(reply) > 30 and "[" not in asked + said + reply:
            text = f"My teacher asked me: {asked}\nI answered: {said}"
            yield Dialogue([{"role": "user", "content": text}, {"role": "assistant", "content": reply}])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
