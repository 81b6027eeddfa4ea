"""Comparisons: our reply and an outside model's to each prompt, and what a judging model says of them."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from uuid import UUID

from django.db import connection

from apps.common.tokens import TOO_LONG
from apps.training.models import Comparison, Pairing
from apps.training.selectors.comparisons import comparison_get, comparison_results
from apps.training.services.comparisons import pairing_record
from lyo import env
from workers.models.template import fit
from workers.protocols import GenerateRequest, Refused, Sampling
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.runtime import have_adapter, runtime
from workers.training.outside import Outside, judge

AT_ONCE = 4  # prompts: what the outside server is asked side by side
MAX_TOKENS = 512
PRIORITY = 2  # behind all that somebody waits for


@job_task("workers.compare")
def compare(job: JobRun) -> dict[str, Any]:
    """The result has the win rate by the judging `model` and by `people` (see `comparison_results`), `unjudged`
    (pairings of which the judge's verdict could not be read) and `too_long` (prompts left out: they do not fit into our
    context). What an earlier attempt has done is not done again."""
    comparison = comparison_get(comparison_id=UUID(job.request["comparison"]))
    contestant = Outside(env.COMPARE_URL, comparison.opponent, env.COMPARE_API_KEY, env.OUTSIDE_TIMEOUT_S, job.stopped)
    by_model = comparison.judge == Comparison.Judge.MODEL
    referee = Outside(env.JUDGE_URL, comparison.judge_model, env.JUDGE_API_KEY, env.OUTSIDE_TIMEOUT_S, job.stopped)
    adapter = comparison.adapter.name if comparison.adapter else None
    left = list(comparison.pairings.filter(answered_at=None).order_by("position"))
    connection.close()

    def play(pairing: Pairing) -> dict[str, Any] | None:
        """Return what to record of the pairing, or None where its prompt does not fit."""
        if job.stopped.is_set():
            raise Refused("cancelled", "the comparison was stopped")
        try:
            ours = answer(pairing.messages, adapter)
        except Refused as refused:
            if refused.code == TOO_LONG:
                return None
            raise
        theirs = contestant.reply(pairing.messages, MAX_TOKENS)
        verdict = judge(referee, pairing.messages, ours, theirs) if by_model else ""
        return {"pairing_id": pairing.id, "ours": ours, "theirs": theirs, "verdict": verdict}

    too_long = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        plays = [pool.submit(play, pairing) for pairing in left]
        try:
            for done in as_completed(plays):
                if (played := done.result()) is None:
                    too_long += 1
                    continue
                pairing_record(**played)
                connection.close()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    answered = comparison.pairings.filter(answered_at__isnull=False)
    if too_long and not answered.exists():
        raise Refused("no_prompts", "there is no prompt to compare replies to that fits into the context")
    unjudged = answered.filter(verdict="").count() if by_model else 0
    return {**comparison_results(comparison), "unjudged": unjudged, "too_long": too_long}


def answer(messages: list[dict[str, Any]], adapter: str | None) -> str:
    if adapter:
        have_adapter(adapter)
    model, engine = runtime()[:2]
    prompt = fit(model.tokenizer, messages, engine.context_tokens - MAX_TOKENS, "drop_oldest")  # type: ignore[arg-type]
    greedy = Sampling(max_tokens=MAX_TOKENS, temperature=0)
    request = GenerateRequest("comparison", tuple(prompt), greedy, priority=PRIORITY, adapter=adapter)
    return engine.submit(request, lambda _: None).wait().text
