"""What the tutor's first adapter learns from: questions and answers written for it."""

from dataclasses import dataclass

from apps.common.constants import Level, Subject


@dataclass(frozen=True, slots=True)
class Lesson:
    """An answer, and some ways in which a learner of that level may ask for it."""

    subject: Subject
    level: Level
    questions: tuple[str, ...]
    answer: str
