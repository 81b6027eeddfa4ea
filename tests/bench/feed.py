"""How feed, enrichment and search do with many learners, items and events: `make bench-feed`.

Once at a tenth of the size, once at full size, with learners who go through subjects as made by a generator here. The
feed's latency stands beside that of a Django view that does nothing, in the same run.
"""

import argparse
import http.client
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from lyo import embedded

if TYPE_CHECKING:
    from apps.jobs.models import Job
    from lyo.stack import Stack

HOME = Path(__file__).resolve().parents[2] / ".lyo" / "bench-feed"
LEARNERS, ITEMS, EVENTS = 100_000, 20_000, 5_000_000
SUBJECTS = ("math", "physics", "chemistry", "biology", "programming", "study")
CONCURRENT, REQUESTS = 8, 2000  # a tenth of them one at a time
SCORED = 2048  # learners of the pass that is timed
READ = 1000  # items that are enriched

EVENTS_SQL = """
INSERT INTO feed_event (at, id, user_id, item_id, type, seconds)
SELECT now() - random() * interval '25 days', gen_random_uuid(), u.id, i.id,
       (ARRAY['click', 'click', 'dwell', 'complete', 'like', 'save'])[1 + floor(random() * 6)], 30 * random()
FROM (
    SELECT floor(random() * %(learners)s)::int AS u, random() AS luck, random() AS taste
    FROM generate_series(1, %(events)s)
) AS e
JOIN bench_user u ON u.n = e.u
-- four of five are of the learner's own sixth of the items, and what is liked by many is liked by most
JOIN bench_item i ON i.n = CASE WHEN taste < 0.8
    THEN (e.u %% 6) + 6 * floor(power(luck, 2) * (%(items)s / 6))::int
    ELSE floor(power(luck, 2) * %(items)s)::int END
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 1.0], help="shares of the full size")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    options = parser.parse_args()
    sizes, requests = ([0.002], 20) if options.smoke else (options.sizes, REQUESTS)
    os.environ |= {"LYO_HOME": str(HOME), "DJANGO_SETTINGS_MODULE": "lyo.settings", "LYO_LOG_LEVEL": "WARNING"}
    HOME.mkdir(parents=True, exist_ok=True)
    embedded.prepare(HOME, os.environ)  # addresses, before anything reads the settings
    import django

    from lyo.stack import Stack

    django.setup()
    limits = {"LYO_REQUESTS_PER_MINUTE": "1000000"}
    print("starting a stack …", flush=True)
    wanted = ("web", "generate", "train")  # without beat nobody asks for work but this program
    with Stack(HOME, say=lambda name, line: None, only=wanted, extra=limits) as stack:
        for size in sizes:
            measure(stack, size, requests)


def measure(stack: "Stack", size: float, requests: int) -> None:
    learners, items, events = (int(count * size) for count in (LEARNERS, ITEMS, EVENTS))
    print(f"\n{learners:,} learners, {items:,} items, {events:,} events", flush=True)
    fill(learners, items, events)
    rates()
    latencies(stack, requests)


# --- data ---


def words() -> list[str]:
    """Those of the demo's catalogue."""
    from apps.content.management.commands.import_content import SHIPPED

    text = " ".join(file.read_text() for file in sorted(SHIPPED.glob("*.jsonl")))
    return sorted(set(re.findall(r"\b[a-z]{3,12}\b", text)))


def fill(learners: int, items: int, events: int) -> None:
    """Replace all that an earlier size left."""
    import numpy as np
    from django.db import connection
    from django.utils import timezone

    from apps.content.models import Enrichment, Item
    from apps.feed.models import Reader
    from apps.users.models import User
    from workers.models.embedder import EMBEDDER
    from workers.scoring.heads import Heads

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE users_user, content_item, feed_ranker CASCADE")
    chance, directions = random.Random(1), np.random.default_rng(1)
    vocabulary = words()
    centres = directions.standard_normal((len(SUBJECTS), 384))
    made = []
    for number in range(items):
        text = " ".join(chance.choice(vocabulary) for _ in range(80))
        subject = SUBJECTS[number % len(SUBJECTS)]
        title = " ".join(chance.choice(vocabulary) for _ in range(5))
        made.append(
            Item(title=title, body=text, text=text, source=str(number), subject=subject, author=f"a{number % 300}")
        )
    Item.objects.bulk_create(made, batch_size=2000)
    vectors = centres[np.arange(items) % len(SUBJECTS)] + directions.standard_normal((items, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digest = sha256(f"{EMBEDDER} {Heads.load().digest}".encode()).hexdigest()  # as the worker's: these are read already
    now = timezone.now()
    read = made[READ:]
    Enrichment.objects.bulk_create(
        (
            Enrichment(
                item=item, source=item.source, models_digest=digest, embedding=vector, quality=0.7,
                educational=0.9 if chance.random() < 0.8 else 0.2, level=chance.choice(["beginner", "advanced"]),
                enriched_at=now,
            )
            for item, vector in zip(read, vectors[READ:], strict=True)
        ),
        batch_size=2000,
    )  # fmt: skip
    people = [User(username=f"bench{number}", email=f"bench{number}@example.org") for number in range(learners)]
    User.objects.bulk_create(people, batch_size=5000)
    Reader.objects.bulk_create((Reader(user=user) for user in people), batch_size=5000)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE bench_user (n int PRIMARY KEY, id uuid); CREATE TEMP TABLE bench_item (LIKE bench_user)"
        )
        for table, rows in (("bench_user", people), ("bench_item", made)):
            with cursor.copy(f"COPY {table} (n, id) FROM STDIN") as copy:
                for number, row in enumerate(rows):
                    copy.write_row((number, row.pk))
        cursor.execute("SET session_replication_role = replica")  # the rows exist: no need to look each up
        cursor.execute(EVENTS_SQL, {"learners": learners, "items": items, "events": events})
        cursor.execute("SET session_replication_role = DEFAULT")
        cursor.execute("ANALYZE; DROP TABLE bench_user; DROP TABLE bench_item")


# --- rates ---


def rates() -> None:
    import numpy as np
    from django.db import connection

    from apps.content.services import enrichment_request
    from apps.feed.models import Reader
    from apps.feed.selectors import catalogue_rows, ranker_live
    from apps.feed.services import ranker_request
    from apps.jobs.models import ACTIVE, Job
    from workers.scoring.feed.catalogue import Batch, Learner
    from workers.scoring.feed.model import blocks, propose
    from workers.tasks import feed

    job = enrichment_request() or Job.objects.get(kind="enrich", state__in=ACTIVE)
    seconds = done_in(job)
    show("enrichment", f"{job.result['items'] / seconds:,.0f} items/s")

    catalogue = feed.catalogue_of(catalogue_rows())
    began = time.perf_counter()
    past = feed.everything(catalogue)
    show("history read", f"{len(past):,} rows in {time.perf_counter() - began:.1f} s")
    seconds = done_in(ranker_request(minimum=0))
    live = ranker_live()
    show("ranker learned", f"in {seconds:.0f} s, {live.verdict if live else 'not live'}")

    feed._state = None
    model = feed.state().model
    users = np.arange(min(SCORED, past.shape[0]))
    people = [
        Learner(interests=frozenset({SUBJECTS[user % 6]}), follows=frozenset({f"a{user % 300}"})) for user in users
    ]
    batches = [Batch(past.of_users(block), [people[user] for user in block]) for block in blocks(users)]
    began = time.perf_counter()
    proposed = [propose(model.sources, batch) for batch in batches]
    seconds = time.perf_counter() - began
    rate = len(users) * len(catalogue) / seconds / 1e6
    show("retrieval", f"{rate:,.1f} million pairs of learner and item/s, each by {len(model.sources)} sources")
    began = time.perf_counter()
    ranked = sum(len(model.engagement(found)) for found in proposed)
    show("ranking", f"{ranked / (time.perf_counter() - began):,.0f} pairs/s")

    with connection.cursor() as cursor:
        cursor.execute("UPDATE feed_reader SET events_at = now()")
    ids = [str(pk) for pk in Reader.objects.order_by("user__username").values_list("pk", flat=True)[:SCORED]]
    began = time.perf_counter()
    for start in range(0, len(ids), feed.AT_ONCE):
        feed.score(ids[start : start + feed.AT_ONCE])
    rate = len(ids) / (time.perf_counter() - began)
    show(f"scoring {len(ids)} learners, with all reads and writes", f"{rate:,.0f} learners/s")
    with connection.cursor() as cursor:  # nobody else is to be scored while requests are timed
        cursor.execute("UPDATE feed_reader SET events_at = NULL WHERE scored_until IS NULL")


# --- latencies ---


def latencies(stack: "Stack", requests: int) -> None:
    from apps.feed.models import Reader
    from apps.search.services import words_count
    from apps.users.services import token_create

    words_count()
    readers = Reader.objects.exclude(scored_until=None).select_related("user")[:64]
    tokens = [token_create(user=reader.user)[1] for reader in readers]
    address = urlsplit(stack.web).netloc
    chance = random.Random(2)

    def client(path: Callable[[], str]) -> Callable[[Any], float]:
        def one(_: Any) -> float:
            headers = {"Authorization": f"Bearer {chance.choice(tokens)}"}
            connection = http.client.HTTPConnection(address)
            began = time.perf_counter()
            connection.request("GET", path(), headers=headers)
            response = connection.getresponse()
            body = response.read()
            seconds = time.perf_counter() - began
            assert response.status == 200, body
            connection.close()
            return seconds * 1e3

        return one

    vocabulary = words()
    for name, path, concurrent, count in (
        ("a Django view that does nothing", lambda: "/livez", CONCURRENT, requests),
        ("GET /feed", lambda: "/api/v1/feed", CONCURRENT, requests),
        ("a Django view that does nothing", lambda: "/livez", 1, requests // 10),
        ("GET /feed", lambda: "/api/v1/feed", 1, requests // 10),
        ("GET /search", lambda: f"/api/v1/search?q={quote(' '.join(chance.sample(vocabulary, 3)))}", 1, requests // 10),
    ):
        with ThreadPoolExecutor(concurrent) as pool:
            list(pool.map(client(path), range(count // 10)))
            times = sorted(pool.map(client(path), range(count)))
        middle, late = statistics.median(times), times[int(len(times) * 0.95)]
        show(f"{name}, {concurrent} concurrent", f"p50 {middle:.1f} ms, p95 {late:.1f} ms")


def done_in(job: "Job | None") -> float:
    """Seconds that the stack's worker takes for it."""
    assert job is not None
    while not job.is_terminal:
        time.sleep(0.2)
        job.refresh_from_db()
    assert job.state == "succeeded", job.error
    return (job.finished_at - job.started_at).total_seconds()


def show(name: str, value: str) -> None:
    print(f"  {name:45} {value}", flush=True)


if __name__ == "__main__":
    main()
