"""What a learner's query asks for: an intent, a subject, a level."""

import re
from dataclasses import dataclass

import numpy as np

from workers.scoring.intents import OOS, IntentClassifier
from workers.scoring.topics import Topics

OFF_TOPIC = "off_topic"
LIKE = 0.25  # cosine with a topic, from which on the query is of its subject
LEVELS = {
    "beginner": re.compile(r"\b(beginners?|basics?|easy|introduction|introductory|intro|simple|simply|start(ing)?)\b"),
    "intermediate": re.compile(r"\bintermediate\b"),
    "advanced": re.compile(r"\b(advanced|experts?|in depth|rigorous|proofs?|graduate|hard)\b"),
}


@dataclass(frozen=True)
class Understood:
    """subject and level: "" where the query tells none. adapter: of the model that understood it, None for the head."""

    intent: str
    subject: str
    level: str
    adapter: str | None = None


def understood(text: str, vector: np.ndarray, topics: Topics, intents: IntentClassifier) -> Understood:
    """vector: [d], the query's embedding, of length 1."""
    (intent,) = intents.predict(vector[None])
    level = next((name for name, words in LEVELS.items() if words.search(text.lower())), "")
    subject = ""
    if len(topics.slugs):
        likeness = topics.vectors @ vector
        best = int(likeness.argmax())
        subject = topics.subjects[best] if likeness[best] >= LIKE else ""
    return Understood(OFF_TOPIC if intent == OOS else intent, subject, level)
