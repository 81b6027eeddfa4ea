"""Train the head that tells what a query wants: `python -m workers.scoring.queries_train`.

Prints how well it does on ways to ask, and on things to ask for, that it has not seen.
"""

from itertools import product

import numpy as np

from workers.models.embedder import Embedder
from workers.scoring.intents import OOS, SHIPPED, IntentClassifier

THINGS = (
    "photosynthesis", "cell division", "natural selection", "the immune system", "enzymes",
    "Newton's laws", "electric current", "kinetic energy", "refraction of light", "free fall",
    "chemical bonds", "acids and bases", "the periodic table", "balancing equations", "moles",
    "fractions", "quadratic equations", "derivatives", "probability", "the Pythagorean theorem",
    "Python loops", "recursion", "lists and tuples", "functions in Python", "sorting algorithms",
    "spaced repetition", "taking notes", "planning a study week", "reading a textbook", "exam preparation",
)  # fmt: skip
PAIRS = (
    ("mitosis", "meiosis"), ("speed", "velocity"), ("acids", "bases"), ("permutations", "combinations"),
    ("lists", "tuples"), ("rereading", "recall practice"), ("series circuits", "parallel circuits"),
    ("ionic bonds", "covalent bonds"), ("mean", "median"), ("for loops", "while loops"), ("DNA", "RNA"),
    ("mass", "weight"), ("isotopes", "ions"), ("sine", "cosine"), ("functions", "methods"),
)  # fmt: skip
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
FREELY = {  # put as nobody's template has it
    "explain": (
        "why is the sky blue", "how do birds stay in the air", "why do ships float", "how does a battery make electricity",
        "what happens when water boils", "why does iron rust", "how do vaccines protect us", "why do we dream",
        "how do trees get water up to their leaves", "why is the sum of two odd numbers even", "how do fish breathe",
        "what makes the wind blow", "why do leaves change colour", "how does a computer store a picture",
        "why can we not divide by zero", "how do muscles grow", "what keeps the moon up", "how does soap clean",
        "why do we forget what we learnt", "how do bees find flowers", "why does ice float", "how is energy stored in food",
        "what happens to food in the stomach", "why do things fall", "how do magnets attract", "how do plants grow in the dark",
    ),
    "practise": (
        "I need some sums to solve", "let me try a few tasks", "more of these problems please", "give me something to solve",
        "homework problems with answers", "a short test before my exam", "coding challenges for today", "flash cards",
    ),
    "find_course": (
        "where do I begin with programming", "I want to become good at maths", "a plan of lessons for a month",
        "which lessons come first", "full course with units", "learn coding from zero", "a path to advanced physics",
    ),
    "define": (
        "what is an atom", "what is a variable", "what does osmosis mean", "what is a prime number", "meaning of entropy",
        "what is a catalyst", "what is a vector", "what do you call half a diameter",
    ),
    "compare": (
        "is a whale a fish or a mammal", "which is faster, a list or a set", "what sets plants apart from animals",
        "are weight and mass the same", "should I reread or test myself", "python or java for a beginner",
    ),
}  # fmt: skip
HELD = 0.3


def main() -> None:
    embedder = Embedder()
    rows = list(queries())
    vectors = np.array(embedder.embed([text for text, _, _, _ in rows]).vectors, np.float32)
    intents = [intent for _, intent, _, _ in rows]
    ways, things = (np.array([row[place] for row in rows]) for place in (2, 3))
    seen = (ways >= HELD) & (things >= HELD)
    new = (ways < HELD) & (things < HELD)
    given = np.array(intents)
    found = np.array(IntentClassifier.fit(vectors[seen], list(given[seen])).predict(vectors[new]))
    for intent in sorted(set(intents)):
        own = given[new] == intent
        print(f"{intent:12} {(found[own] == intent).mean():.2f} of {own.sum()} put in new ways, about new things")
    IntentClassifier.fit(vectors, intents).save()
    print(SHIPPED)


def queries() -> list[tuple[str, str, float, float]]:
    """Each with its intent, and with how far in its list its way and its thing stand, from 0 to 1."""
    found = []
    for intent, ways in WAYS.items():
        things = [pair if intent == "compare" else (pair,) for pair in (PAIRS if intent == "compare" else THINGS)]
        for (way_place, way), (place, thing) in product(enumerate(ways), enumerate(things)):
            found.append((way.format(*thing), intent, way_place / len(ways), _scattered(place, len(things))))
    found += [(text, intent, 1.0, 1.0) for intent, texts in FREELY.items() for text in texts]
    for place, text in enumerate(ELSEWHERE):
        share = _scattered(place, len(ELSEWHERE))
        found.append((text, OOS, share, share))
    return found


def _scattered(place: int, count: int) -> float:
    """So that what is held out is of all subjects."""
    return (place * 7 % count) / count


if __name__ == "__main__":
    main()
