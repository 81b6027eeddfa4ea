"""Train the head that tells what a query wants: `python -m workers.scoring.queries_train`.

Prints how well it does on ways to ask, and on things to ask for, that it has not seen. `--examples FILE` writes the same
queries as examples of the task `query`, for a first adapter, and `--held FILE` those that it is to be judged by.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workers.models.embedder import Embedder
from workers.scoring.intents import OOS, SHIPPED, IntentClassifier
from workers.scoring.queries import OFF_TOPIC

THINGS = {
    "biology": ("photosynthesis", "cell division", "natural selection", "the immune system", "enzymes"),
    "physics": ("Newton's laws", "electric current", "kinetic energy", "refraction of light", "free fall"),
    "chemistry": ("chemical bonds", "acids and bases", "the periodic table", "balancing equations", "moles"),
    "math": ("fractions", "quadratic equations", "derivatives", "probability", "the Pythagorean theorem"),
    "programming": ("Python loops", "recursion", "lists and tuples", "functions in Python", "sorting algorithms"),
    "study": (
        "spaced repetition", "taking notes", "planning a study week", "reading a textbook", "exam preparation",
    ),
}  # fmt: skip
PAIRS = {
    "biology": (("mitosis", "meiosis"), ("DNA", "RNA")),
    "physics": (("speed", "velocity"), ("series circuits", "parallel circuits"), ("mass", "weight")),
    "chemistry": (("acids", "bases"), ("ionic bonds", "covalent bonds"), ("isotopes", "ions")),
    "math": (("permutations", "combinations"), ("mean", "median"), ("sine", "cosine")),
    "programming": (("lists", "tuples"), ("for loops", "while loops"), ("functions", "methods")),
    "study": (("rereading", "recall practice"),),
}
WAYS = {
    "explain": (
        "how does {} work", "explain {} to me", "why do we need {}", "help me understand {}", "I do not get {}",
        "how do {} happen", "explain step by step {}", "what is the idea behind {}", "how can I make sense of {}", "{}",
    ),
    "practise": (
        "exercises on {}", "give me problems about {}", "quiz me on {}", "practice questions for {}", "{} worksheet",
        "I want to practise {}", "test my knowledge of {}", "drill {}", "some tasks with solutions on {}", "train {}",
    ),
    "find_course": (
        "course on {}", "which course teaches {}", "learn {} from scratch", "a full class about {}",
        "lessons about {} in order", "where can I study {}", "is there a course for {}", "curriculum for {}",
        "a series of lessons on {}", "tutorial series {}",
    ),
    "define": (
        "what is {}", "definition of {}", "define {}", "what does {} mean", "meaning of {}", "what are {}",
        "{} definition", "what do we call {}", "what is meant by {}", "term {}",
    ),
    "compare": (
        "difference between {} and {}", "{} vs {}", "compare {} with {}", "{} or {}", "which is better, {} or {}",
        "what do {} and {} have in common", "how are {} and {} different", "{} versus {}", "when to use {} and when {}",
        "similarities of {} and {}",
    ),
}  # fmt: skip
ELSEWHERE = (
    "what is the weather tomorrow", "book a table for two", "play some music", "order a pizza", "who won the match",
    "cheap flights to Rome", "set an alarm for seven", "call my mother", "tell me a joke", "what should I cook tonight",
    "how do I get to the station", "turn off the lights", "my parcel has not come", "funny videos of dogs",
    "best phone to buy", "is my flight on time", "what time is it in Tokyo", "celebrity gossip", "movie times near me",
    "reset my password", "how much is a bus ticket", "watch football live", "buy shoes online", "what is on television",
    "dating tips", "lottery numbers", "horoscope for today", "song lyrics", "how is the traffic", "new video games",
    "stock price of a car maker", "hotel with a pool", "find a plumber", "my order number", "share my location",
    "remind me to call the bank", "how old is that actor", "latest news", "what to wear to a party", "weekend plans",
)  # fmt: skip
FREELY = {  # put as nobody's template has it, by subject
    "explain": {
        "physics": (
            "why is the sky blue", "how do birds stay in the air", "why do ships float", "what makes the wind blow",
            "what keeps the moon up", "why do things fall", "how do magnets attract", "why does ice float",
        ),
        "chemistry": (
            "how does a battery make electricity", "what happens when water boils", "why does iron rust",
            "how does soap clean",
        ),
        "biology": (
            "how do vaccines protect us", "why do we dream", "how do trees get water up to their leaves",
            "how do fish breathe", "why do leaves change colour", "how do muscles grow", "how do bees find flowers",
            "how is energy stored in food", "what happens to food in the stomach", "how do plants grow in the dark",
        ),
        "math": ("why is the sum of two odd numbers even", "why can we not divide by zero"),
        "programming": ("how does a computer store a picture",),
        "study": ("why do we forget what we learnt",),
    },
    "practise": {
        "math": ("I need some sums to solve",),
        "programming": ("coding challenges for today",),
        "": (
            "let me try a few tasks", "more of these problems please", "give me something to solve",
            "homework problems with answers", "a short test before my exam", "flash cards",
        ),
    },
    "find_course": {
        "programming": ("where do I begin with programming", "learn coding from zero"),
        "math": ("I want to become good at maths",),
        "physics": ("a path to advanced physics",),
        "": ("a plan of lessons for a month", "which lessons come first", "full course with units"),
    },
    "define": {
        "chemistry": ("what is an atom", "what is a catalyst"),
        "programming": ("what is a variable",),
        "biology": ("what does osmosis mean",),
        "math": ("what is a prime number", "what do you call half a diameter"),
        "physics": ("meaning of entropy", "what is a vector"),
    },
    "compare": {
        "biology": ("is a whale a fish or a mammal", "what sets plants apart from animals"),
        "programming": ("which is faster, a list or a set", "python or java for a beginner"),
        "physics": ("are weight and mass the same",),
        "study": ("should I reread or test myself",),
    },
}  # fmt: skip
HELD = 0.3
LEVELS = {
    "beginner": "{} for beginners",
    "intermediate": "{}, intermediate level",
    "advanced": "{}, advanced",
    "": "{}",
}


class Query(NamedTuple):
    """way, thing: how far in their lists these stand, from 0 to 1. subject: "" where it is of none."""

    text: str
    intent: str
    subject: str
    way: float
    thing: float

    @property
    def is_new(self) -> bool:
        """To a head that has learnt from those that are seen; of the rest, either the way or the thing is."""
        return self.way < HELD and self.thing < HELD

    @property
    def is_seen(self) -> bool:
        return self.way >= HELD and self.thing >= HELD


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.scoring.queries_train", description=__doc__)
    parser.add_argument("--examples", type=Path, metavar="FILE", help="write examples of a task instead")
    parser.add_argument("--held", type=Path, metavar="FILE", help="and leave these out, to judge by")
    options = parser.parse_args()
    if options.examples:
        options.examples.write_text(lines(query for query in queries() if query.is_seen or not options.held))
        if options.held:
            options.held.write_text(lines(query for query in queries() if query.is_new))
        return
    embedder = Embedder()
    rows = list(queries())
    vectors = np.array(embedder.embed([query.text for query in rows]).vectors, np.float32)
    intents = np.array([query.intent for query in rows])
    seen, new = (np.array([getattr(query, name) for query in rows]) for name in ("is_seen", "is_new"))
    found = np.array(IntentClassifier.fit(vectors[seen], list(intents[seen])).predict(vectors[new]))
    print(f"{'all':12} {(found == intents[new]).mean():.2f} of {new.sum()} put in new ways, about new things")
    for intent in sorted(set(intents)):
        own = intents[new] == intent
        print(f"{intent:12} {(found[own] == intent).mean():.2f} of {own.sum()}")
    IntentClassifier.fit(vectors, list(intents)).save()
    print(SHIPPED)


def queries() -> list[Query]:
    found = []
    for intent, ways in WAYS.items():
        given: dict[str, tuple[Any, ...]] = PAIRS if intent == "compare" else THINGS
        things = [(subject, thing) for subject, names in given.items() for thing in names]
        for (way_place, way), (place, (subject, thing)) in product(enumerate(ways), enumerate(things)):
            text = way.format(*thing) if intent == "compare" else way.format(thing)
            found.append(Query(text, intent, subject, way_place / len(ways), _scattered(place, len(things))))
    for intent, subjects in FREELY.items():
        found += [Query(text, intent, subject, 1.0, 1.0) for subject, texts in subjects.items() for text in texts]
    for place, text in enumerate(ELSEWHERE):
        share = _scattered(place, len(ELSEWHERE))
        found.append(Query(text, OOS, "", share, share))
    return found


def lines(chosen: Iterable[Query]) -> str:
    """JSONL in the format `query` of `apps/training/formats.py`; each fourth query is of each level, or of none."""
    written = []
    for number, query in enumerate(chosen):
        level = tuple(LEVELS)[number % len(LEVELS)] if query.intent != OOS else ""
        intent = OFF_TOPIC if query.intent == OOS else query.intent
        record = {"query": LEVELS[level].format(query.text), "intent": intent, "subject": query.subject, "level": level}
        written.append(json.dumps(record) + "\n")
    return "".join(written)


def _scattered(place: int, count: int) -> float:
    """So that what is held out is of all subjects."""
    return (place * 7 % count) / count


if __name__ == "__main__":
    main()
