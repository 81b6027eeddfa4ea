"""Foresight: how much learners will take to the best of their feeds, as Gemma expects it with the live adapter."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection
from django.utils import timezone

from apps.feed import selectors, services
from apps.training.formats import engagement_question
from workers.models.template import render
from workers.protocols import Handle, ScoreRequest, Scores
from workers.scoring.number import number_expected, number_tree
from workers.tasks import feed
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.runtime import have_adapter, runtime

BEST = 50  # entries of a ranking
PRIORITY = 2  # behind all that somebody waits for


@job_task("workers.foresee_feed")
def foresee_feed(job: JobRun) -> dict[str, Any]:
    """The result has the number of `learners`, those whom the night's end left out not among them, and of `questions`
    that the model was asked: learners alike are asked about once. Their feeds are scored anew at once."""
    adapter, until = job.request["adapter"], datetime.fromisoformat(job.request["until"])
    have_adapter(adapter)
    known: dict[str, float] = {}
    learners = 0
    done = selectors.foreseen_since(
        user_ids=job.request["users"], adapter=adapter, since=job.claim.job.created_at
    )  # by a worker that died
    for user in job.request["users"]:
        if user in done:
            continue
        questions = questions_of(UUID(user))
        connection.close()
        new = list({question for question in questions.values() if question not in known})
        if job.stopped.is_set() or timezone.now() > until:
            break
        known |= zip(new, expected(new, adapter), strict=True)
        if not questions:
            continue
        values = {item: round(known[question], 4) for item, question in questions.items()}
        with suppress(IntegrityError):  # the learner has left meanwhile
            services.foresight_store(user_id=UUID(user), adapter=adapter, values=values)
            feed.score([user])
            learners += 1
    return {"learners": learners, "questions": len(known)}


def questions_of(user_id: UUID) -> dict[str, str]:
    """What to ask about each of the learner's best items, by the items' ids."""
    profile, items = selectors.foresight_wanted(user_id=user_id, best=BEST)
    return {item: engagement_question(content, profile) for item, content in items.items()}


def expected(questions: Sequence[str], adapter: str) -> list[float]:
    """The answers, from 0 to 1. Raises `Refused` where it tells no probabilities."""
    model, engine = runtime()[:2]
    tree = number_tree(model.tokenizer)
    asked: list[Handle[Scores]] = []
    for question in questions:
        prompt = render(model.tokenizer, [{"role": "user", "content": question}])
        asked.append(engine.score(ScoreRequest("foresight", tuple(prompt), *tree, priority=PRIORITY, adapter=adapter)))
    return [number_expected(handle.wait().logprobs) for handle in asked]
