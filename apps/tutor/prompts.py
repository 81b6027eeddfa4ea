"""What the tutor is told before it hears the learner."""

from collections.abc import Iterable

from apps.common.constants import Level, Subject
from apps.tutor.models import Conversation, Message

ROLE = (
    "You are Lyo, a patient tutor. Explain step by step, in short sentences. "
    "When the learner asks for a hint, give one hint and not the answer."
)
SUBJECTS = {
    Subject.MATH: "The subject is mathematics. Show each step of a calculation and check the result.",
    Subject.PHYSICS: "The subject is physics. Name the law that applies, and give units.",
    Subject.CHEMISTRY: "The subject is chemistry. Balance equations and name the substances.",
    Subject.BIOLOGY: "The subject is biology. Say what a structure does and why that matters.",
    Subject.PROGRAMMING: "The subject is programming. Give short code that runs, and say what each part does.",
    Subject.STUDY: "The subject is how to study. Make plans with days, goals and a way to check progress.",
    Subject.GENERAL: "",
}
HISTORY = 40  # messages that are offered to the prompt; the worker drops the oldest turns that do not fit
LEVELS = {
    Level.BEGINNER: "The learner is a beginner: avoid jargon, use everyday examples.",
    Level.INTERMEDIATE: "The learner knows the basics: use the field's terms and explain new ones.",
    Level.ADVANCED: "The learner is advanced: be precise and brief.",
}


def system_prompt(subject: str, level: str) -> str:
    return " ".join(filter(None, (ROLE, SUBJECTS[Subject(subject)], LEVELS[Level(level)])))


def messages_for_model(conversation: Conversation, history: Iterable[Message]) -> list[dict[str, str]]:
    """The system prompt, the questions that got an answer with their answers, and the last question."""
    turns = list(history)
    messages = [{"role": "system", "content": system_prompt(conversation.subject, conversation.level)}]
    for question, answer in zip(turns[0:-1:2], turns[1::2], strict=True):
        if answer.content:
            messages += [{"role": turn.role, "content": turn.content} for turn in (question, answer)]
    return [*messages, {"role": turns[-1].role, "content": turns[-1].content}]
