"""How long a newcomer waits beside forty accounts that flood the queue: `make bench-fairness`.

The same naps in the place of answers, by the same number of threads: once as bare Celery tasks, which are taken by
arrival and never refused, and once as Lyo's jobs, which users take in turns and of which a full queue takes no more.
"""

import argparse
import os
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

from lyo import embedded
from lyo.processes import Process

HOME = Path(__file__).resolve().parents[2] / ".lyo" / "bench"
ACCOUNTS, EACH = 40, 8  # what one user may have under way
THREADS = 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-fairness", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="show that it runs, and measure nothing")
    smoke = parser.parse_args().smoke
    rounds, nap_s = (1, 0.01) if smoke else (5, 0.2)
    HOME.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LYO_HOME": str(HOME), "DJANGO_SETTINGS_MODULE": "lyo.settings", "LYO_LOG_LEVEL": "WARNING"}
    embedded.prepare(HOME, os.environ)  # addresses, before anything reads the settings
    import django

    django.setup()
    from lyo.stack import WORKER, Stack
    from tests.bench.tasks import QUEUE

    options = (f"--concurrency={THREADS}", "--hostname=bench@%h", f"--queues={QUEUE}", "--include=tests.bench.tasks")
    stack = Stack(HOME, say=lambda name, line: None, only=())
    print("starting servers and a worker …", flush=True)
    with stack:
        stack.supervisor.start(Process(name="bench", argv=(*WORKER, *options), env=stack.environment))
        arrival, turns, refused = [], [], []
        for _ in range(rounds):
            arrival.append(by_arrival(nap_s))
            wait_s, share = by_turns(nap_s)
            turns.append(wait_s)
            refused.append(share)
    print(
        f"\na newcomer's wait in s beside {ACCOUNTS} accounts with {EACH} requests of {nap_s:g} s each, "
        f"{THREADS} threads, median of {rounds} [min, max]"
    )
    show("Celery tasks, by arrival", arrival)
    show("Lyo jobs, by turns", turns, f"ratio {statistics.median(turns) / statistics.median(arrival):.3f}")
    print(f"  of the flood {statistics.median(refused):.0%} were refused, of the newcomers none", flush=True)


def by_arrival(nap_s: float) -> float:
    """Seconds from a newcomer's request to its beginning, as Celery does it."""
    from tests.bench.tasks import QUEUE, nap, naps_begun

    for _ in range(ACCOUNTS * EACH):
        nap.apply_async(args=["flood", nap_s], queue=QUEUE)
    name, asked = f"newcomer-{uuid.uuid4()}", time.time()
    nap.apply_async(args=[name, nap_s], queue=QUEUE)
    while (begun := naps_begun(name)) is None:
        time.sleep(0.005)
    while naps_begun("flood", all_of=ACCOUNTS * EACH) is None:  # the next round begins with an empty queue
        time.sleep(0.05)
    return begun - asked


def by_turns(nap_s: float) -> tuple[float, float]:
    """The same as Lyo does it, and the share of the flood that was refused."""
    from apps.jobs.models import ACTIVE, Job

    flooders = users(ACCOUNTS)
    taken = [flood.id for _ in range(EACH) for flooder in flooders if (flood := ask(flooder, nap_s))]
    (newcomer,) = users(1)
    job = ask(newcomer, nap_s)
    assert job, "the newcomer was refused"
    while not (job := Job.objects.get(id=job.id)).started_at:
        time.sleep(0.005)
    while Job.objects.filter(id__in=[*taken, job.id], state__in=ACTIVE).exists():
        time.sleep(0.05)
    return (job.started_at - job.created_at).total_seconds(), 1 - len(taken) / (ACCOUNTS * EACH)


def users(count: int) -> list[Any]:
    from apps.users.models import User

    names = [f"u{uuid.uuid4().hex[:12]}" for _ in range(count)]
    return [User.objects.create_user(name, f"{name}@example.org", None) for name in names]


def ask(user: Any, nap_s: float) -> Any:
    """The accepted job, or None where it was refused."""
    from django.db import transaction

    from apps.common.errors import TooManyRequests
    from apps.jobs.services import job_admit, job_create

    try:
        with transaction.atomic():
            job_admit(user=user, kind="ping")
            return job_create(kind="ping", request={"ping": 0, "nap_s": nap_s}, user=user)
    except TooManyRequests:
        return None


def show(name: str, values: list[float], remark: str = "") -> None:
    print(f"  {name:<28}{statistics.median(values):8.2f} [{min(values):.2f}, {max(values):.2f}]   {remark}", flush=True)


if __name__ == "__main__":
    main()
