import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.common.constants import Level, Subject
from apps.tutor.lessons import arithmetic, biology, chemistry, hints, maths, physics, programming, study, talk
from apps.tutor.lessons.sources import Dialogue, WordProblem, corrections, hint_dialogues, word_problems
from apps.tutor.prompts import system_prompt

LESSONS = [
    lesson for module in (biology, chemistry, maths, physics, programming, study, talk) for lesson in module.LESSONS
]
BARE = 0.25  # of the questions come without the tutor's prompt, as through /v1
SEED, JUDGED_SEED = 1, 2  # of what is generated to learn from, and to judge by
GENERATED, JUDGED = 2000, 100

Record = dict[str, Any]


class Command(BaseCommand):
    help = "Write what the tutor's first adapter learns from, and is judged by, as JSONL: see `make tutor`."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl of openai/grade-school-math (MIT)")
        parser.add_argument("--bridge", type=Path, required=True, help="train.jsonl of rosewang2008/bridge (MIT)")
        parser.add_argument("--output", type=Path, required=True, help="a folder")

    def handle(self, *args: Any, gsm8k: Path, bridge: Path, output: Path, **options: Any) -> None:
        for path in (gsm8k, bridge):
            if not path.is_file():
                raise CommandError(f"{path} is not there.")
        learnt, held_out = word_problems(gsm8k)
        random = Random(SEED)  # noqa: S311
        judged = {"arithmetic": list(judged_arithmetic()), "hints": list(judged_hints())}
        apart = {first_question(record) for records in judged.values() for record in records}
        files: dict[str, Iterable[Record]] = {
            "train/word-problems": map(bare_solution, learnt),
            "train/solutions": (prompted_solution(problem, random) for problem in learnt),
            "train/hints": (
                spoken(dialogue, Subject.MATH, random)
                for dialogue in [*hint_dialogues(learnt, random), *hints.hints(SEED, GENERATED)]
                if dialogue.messages[0]["content"] not in apart
            ),
            "train/lessons": lessons(random),
            "train/arithmetic": (
                asked(problem.question, problem.solution, random)
                for problem in arithmetic.problems(SEED, GENERATED)
                if problem.question not in apart
            ),
            "train/corrections": (spoken(dialogue, Subject.MATH, random) for dialogue in corrections(bridge)),
            "judged/word-problems": ({**bare_solution(p), "answer": p.answer} for p in held_out),
            "judged/word-problems-asked-of-the-tutor": map(judged_solution, held_out),
            "judged/word-problem-hints": held_out_hints(held_out),
            **{f"judged/{name}": records for name, records in judged.items()},
        }
        for name, records in files.items():
            self.stdout.write(f"{output / name}.jsonl: {write(output / f'{name}.jsonl', records)} records")


def write(path: Path, records: Iterable[Record]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return len(lines)


def bare_solution(problem: WordProblem) -> Record:
    """As GSM8K has it, so that others' figures can be compared."""
    return chat(problem.question, f"{problem.text}\n#### {problem.answer}")


def prompted_solution(problem: WordProblem, random: Random) -> Record:
    end = random.choice(("So the answer is {}.", "The answer is {}.", "Answer: {}.")).format(problem.answer)
    level = random.choice(Level.values)
    return chat(problem.question, f"{problem.text}\n{end}", system_prompt(Subject.MATH, level))


def judged_solution(problem: WordProblem) -> Record:
    """As a learner asks the tutor."""
    return {**prompted_solution(problem, Random(problem.question)), "answer": problem.answer}  # noqa: S311


def lessons(random: Random) -> Iterator[Record]:
    for lesson in LESSONS:
        for question in lesson.questions:
            subject = lesson.subject if random.random() < 0.8 else Subject.GENERAL
            level = lesson.level if lesson.subject != Subject.GENERAL else random.choice(Level.values)
            bare = random.random() < BARE
            yield chat(question, lesson.answer, "" if bare else system_prompt(subject, level))


def asked(question: str, answer: str, random: Random) -> Record:
    prompt = system_prompt(random.choice((Subject.MATH, Subject.GENERAL)), random.choice(Level.values))
    return chat(question, answer, "" if random.random() < BARE else prompt)


def spoken(dialogue: Dialogue, subject: Subject, random: Random) -> Record:
    """A dialogue of which the last turn is learnt."""
    *context, reply = dialogue.messages
    context = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in context]
    bare = random.random() < BARE
    system = [] if bare else [{"role": "system", "content": system_prompt(subject, random.choice(Level.values))}]
    return {"messages": [*system, *context, reply]}


def judged_arithmetic() -> Iterator[Record]:
    random = Random(JUDGED_SEED)  # noqa: S311
    for problem in arithmetic.problems(JUDGED_SEED, JUDGED):
        prompt = system_prompt(Subject.MATH, random.choice(Level.values))
        yield {**chat(problem.question, problem.solution, prompt), "answer": problem.answer}


def judged_hints() -> Iterator[Record]:
    return hint_records(dialogue for dialogue in hints.hints(JUDGED_SEED, 4 * JUDGED))


def held_out_hints(problems: list[WordProblem]) -> Iterator[Record]:
    return hint_records(hint_dialogues(problems, Random(JUDGED_SEED)))  # noqa: S311


def hint_records(dialogues: Iterable[Dialogue]) -> Iterator[Record]:
    """Those of one turn, in which a hint is asked for."""
    random = Random(JUDGED_SEED)  # noqa: S311
    chosen = [dialogue for dialogue in dialogues if len(dialogue.messages) == 2 and dialogue.answer]
    for dialogue in chosen[:JUDGED]:
        question, hint = (turn["content"] for turn in dialogue.messages)
        prompt = system_prompt(Subject.MATH, random.choice(Level.values))
        yield {**chat(question, hint, prompt), "answer": dialogue.answer, "hint": True}


def chat(question: str, answer: str, system: str = "") -> Record:
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def first_question(record: Record) -> str:
    question: str = next(message["content"] for message in record["messages"] if message["role"] == "user")
    return question
