"""What the first tutor learns from is right, gives nothing away, and holds nothing of what it is judged by."""

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from fractions import Fraction
from io import StringIO
from pathlib import Path
from random import Random

import pytest
from django.core.management import CommandError, call_command

from apps.tutor.lessons import arithmetic, hints, programming
from apps.tutor.lessons.sources import HELD_OUT, WordProblem, hint_dialogues, numbers, word_problems
from apps.tutor.management.commands.make_lessons import LESSONS
from lyo import env
from tests.helpers import environment_of_nobody

SETS = Path("apps/training/evaluation_sets")
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


def problem(number: int) -> dict[str, str]:
    total, rest = 2 * number, 2 * number - 7
    steps = (
        f"He has {number}*2=<<{number}*2={total}>>{total} apples.",
        f"Then {total}-7=<<{total}-7={rest}>>{rest} are left.",
        f"#### {rest}",
    )
    answer = "\n".join(steps)
    return {"question": f"Tom buys {number} bags of 2 apples and eats 7. How many are left?", "answer": answer}


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(problem(number)) + "\n" for number in range(1000, 1000 + HELD_OUT + 60)))
    return path


@pytest.mark.parametrize("lesson", programming.LESSONS, ids=lambda lesson: lesson.questions[0])
def test_a_snippet_prints_what_its_lesson_says(lesson: programming.Lesson) -> None:
    for snippet in SNIPPET.findall(lesson.answer):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(snippet, {})
        lines = printed.getvalue().splitlines()
        assert (
            f"It prints {' and '.join([', '.join(lines[:-1]), lines[-1]]) if lines[1:] else lines[0]}" in lesson.answer
        )


def test_lessons_have_phrasings_and_are_short() -> None:
    for lesson in LESSONS:
        assert len(set(lesson.questions)) == len(lesson.questions) >= 2
        assert len(lesson.answer.split()) <= 120


def test_arithmetic_is_right() -> None:
    for made in arithmetic.problems(seed=5, count=500):
        found = re.match(r"(\d+) ([-+*/]) (\d+)(?: / (\d+))? = (\d+)\. The answer is (\d+)\.$", made.solution)
        assert found is not None, made.solution
        a, operator, b, divisor, result, answer = found.groups()
        value = {
            "+": Fraction(a) + int(b),
            "-": Fraction(a) - int(b),
            "*": Fraction(a) * int(b),
            "/": Fraction(a) / int(b),
        }
        assert value[operator] / int(divisor or 1) == int(result) == int(answer) == int(made.answer)
        assert {a, b} <= numbers(made.question) | {made.answer}


@pytest.mark.parametrize("module", [arithmetic.problems, hints.hints])
def test_generators_repeat_themselves_by_seed_alone(module: object) -> None:
    assert list(module(3, 20)) == list(module(3, 20)) != list(module(4, 20))  # type: ignore[operator]


def test_no_hint_gives_the_answer_away() -> None:
    word = [
        WordProblem(p["question"], p["answer"].split("\n####")[0], p["answer"].split()[-1])
        for p in map(problem, range(20, 400))
    ]
    made = [*hints.hints(seed=5, count=500), *hint_dialogues(word, Random(0))]
    assert len(made) > 700
    for dialogue in made:
        said = [message["content"] for message in dialogue.messages if message["role"] == "assistant"]
        assert dialogue.answer is not None
        assert not numbers(dialogue.answer) & numbers(" ".join(said)), dialogue


def test_held_out_problems_are_the_same_whatever_else_is_there_and_are_not_learnt(gsm8k: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge.jsonl").write_text("")
    learnt, held_out = word_problems(gsm8k)
    assert (len(learnt), len(held_out)) == (60, HELD_OUT)
    output = tmp_path / "lessons"
    call_command("make_lessons", gsm8k=gsm8k, bridge=tmp_path / "bridge.jsonl", output=output, stdout=StringIO())
    everything = "".join(path.read_text() for path in (output / "train").glob("*.jsonl"))
    assert all(problem.question in everything for problem in learnt)
    assert not any(problem.question in everything for problem in held_out)
    asked = (output / "judged" / "word-problems-asked-of-the-tutor.jsonl").read_text().splitlines()
    assert [json.loads(line)["messages"][1]["content"] for line in asked] == [problem.question for problem in held_out]
    judged = [json.loads(line) for line in (output / "judged" / "word-problems.jsonl").read_text().splitlines()]
    assert {record["messages"][0]["content"] for record in judged} == {problem.question for problem in held_out}
    assert all(record["messages"][1]["content"].endswith(f"#### {record['answer']}") for record in judged)


def test_shipped_evaluation_sets_are_those_that_the_command_makes_and_not_learnt(gsm8k: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge.jsonl").write_text("")
    call_command("make_lessons", gsm8k=gsm8k, bridge=tmp_path / "bridge.jsonl", output=tmp_path, stdout=StringIO())
    learnt = "".join(path.read_text() for path in (tmp_path / "train").glob("*.jsonl"))
    for name in ("arithmetic", "hints"):
        shipped = (SETS / f"tutoring-{name}.jsonl").read_text()
        assert shipped == (tmp_path / "judged" / f"{name}.jsonl").read_text()
        for line in shipped.splitlines():
            record = json.loads(line)
            question = next(m["content"] for m in record["messages"] if m["role"] == "user")
            assert json.dumps(question, ensure_ascii=False) not in learnt


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere"):
        call_command("make_lessons", gsm8k=tmp_path / "nowhere.jsonl", bridge=tmp_path, output=tmp_path)


def test_make_tutor_needs_no_stack(tmp_path: Path) -> None:
    files = [f"{name}={tmp_path / 'nowhere.jsonl'}" for name in ("GSM8K", "BRIDGE")]
    run = ["make", "-o", ".venv/local.installed", "tutor", f"BIN={Path(sys.executable).parent}", *files]
    environment = {**environment_of_nobody(), "LYO_HOME": str(tmp_path)}
    done = subprocess.run(run, cwd=env.BASE_DIR, env=environment, capture_output=True, text=True)
    assert done.stderr.startswith(f"CommandError: {tmp_path / 'nowhere.jsonl'} is not there.")
