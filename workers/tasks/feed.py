"""The feed: learners are scored in shards, and a new ranker is learned of what all of them did."""

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from threading import Lock
from typing import Any, cast

import numpy as np
import structlog
from django.db import IntegrityError, connection
from django.utils import timezone
from scipy.sparse import csr_matrix

from apps.common.constants import Task
from apps.feed import selectors, services
from apps.feed.entries import Entry
from apps.feed.models import Ranking
from apps.feed.selectors import Act
from apps.inference.selectors import adapter_live
from workers.protocols import Refused
from workers.scoring.feed.catalogue import LEVELS, TEACHES, Batch, Catalogue, Learner
from workers.scoring.feed.evaluation import compared
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.model import FeedModel, fit_ranker, fit_sources
from workers.scoring.feed.ranking import Scored, rankings
from workers.scoring.files import BadFile
from workers.tasks.claimed import JobRun, job_task

CATALOGUE_S = 30.0  # how old it may be
logger = structlog.get_logger(__name__)
AT_ONCE = 32  # learners, between two looks at whether the job was stopped
ALLOWANCE = 0.005  # of NDCG@10, that a new ranker may have less than the live one
JUDGED_BY = 5000  # learners: then two standard errors of the difference are less than that


@dataclass(frozen=True)
class State:
    """What scoring needs to know of items, and how old that is."""

    model: FeedModel
    catalogue: Catalogue
    ranker: str  # sha256 of the live one; "" where there is none
    loaded_at: float


_state: State | None = None
_loading = Lock()


@job_task("workers.score_feed")
def score_feed(job: JobRun) -> dict[str, Any]:
    """The result has the number of `learners`; those of whom another worker knew later events are not among them."""
    done = 0
    users = job.request["users"]
    for start in range(0, len(users), AT_ONCE):
        if job.stopped.is_set():
            break
        done += score(users[start : start + AT_ONCE])
        connection.close()
    return {"learners": done}


def score(user_ids: list[str]) -> int:
    """Rank for these learners, and keep it; returns of how many it was kept."""
    now = state()
    if not len(now.catalogue):
        return 0
    readers = list(selectors.readers_with_profiles(user_ids=user_ids))
    acts: dict[Any, list[Act]] = defaultdict(list)
    for act in selectors.act_list(user_ids=[reader.pk for reader in readers]):
        acts[act.user].append(act)
    follows = selectors.follows_of(user_ids=user_ids)
    live = adapter_live(task=Task.ENGAGEMENT)
    foresights = selectors.foresights_of(user_ids=user_ids, adapter=live.name) if live else {}
    places = now.catalogue.places
    if not readers:
        return 0
    learners = [
        Learner(
            interests=frozenset(interest.lower() for interest in reader.user.interests),
            level=reader.user.level,
            language=reader.user.language,
            follows=frozenset(follows.get(reader.pk, ())),
            completed=[places[act.item] for act in acts[reader.pk] if act.completed and act.item in places],
            ended=[places[act.item] for act in acts[reader.pk] if act.ended and act.item in places],
            tired=[places[act.item] for act in acts[reader.pk] if act.tired and act.item in places],
            foresight={places[k]: value for k, value in foresights.get(reader.pk, {}).items() if k in places},
        )
        for reader in readers
    ]
    history = history_of([acts[reader.pk] for reader in readers], now.catalogue)
    batch = Batch(history, learners, timezone.now().timestamp())
    kept = 0
    for reader, scored in zip(readers, rankings(now.model, now.catalogue, batch, selectors.weights_get()), strict=True):
        with suppress(IntegrityError):  # the learner has left meanwhile
            kept += bool(
                services.ranking_store(
                    user=reader.user,
                    entries=[entry_of(one, now.catalogue) for one in scored],
                    origin=Ranking.Origin.SCORED,
                    until=cast(datetime, reader.events_at),
                    profile=selectors.profile_digest(reader.user),
                    ranker=now.ranker,
                )
            )
    return kept


def history_of(acts: list[list[Act]], catalogue: Catalogue) -> Interactions:
    """What each learner took to; what they hid is none of it."""
    rows = [
        (row, catalogue.places[act.item], act.at.timestamp(), act.weight)
        for row, own in enumerate(acts)
        for act in own
        if act.at is not None and act.item in catalogue.places
    ]
    users, items, times, weights = (np.array(column) for column in zip(*rows, strict=True)) if rows else [[]] * 4
    return Interactions.of(
        np.asarray(users, np.int64),
        np.asarray(items, np.int64),
        np.asarray(times, float),
        np.asarray(weights, np.float32),
        (len(acts), len(catalogue)),
    )


def entry_of(scored: Scored, catalogue: Catalogue) -> Entry:
    return Entry(
        item=catalogue.ids[scored.item],
        subject=catalogue.subjects[scored.item],
        author=catalogue.authors[scored.item],
        teaches=bool(catalogue.educational[scored.item] >= TEACHES),
        parts=scored.parts,
        reasons=scored.reasons,
        propensity=scored.propensity,
    )


def state() -> State:
    """The live ranker and the catalogue, read anew every half minute; threads take turns."""
    global _state
    with _loading:
        if _state is None or time.monotonic() - _state.loaded_at > CATALOGUE_S:
            _state = load()
        return _state


def load() -> State:
    live = selectors.ranker_live()
    data = None
    if live is not None:
        try:
            data = live.file.read()
        except OSError as error:
            logger.error("the live ranker cannot be read: have LYO_FILES_DIR shared with web", error=error)
    first = FeedModel.items_of(data) if data is not None else ()
    catalogue = catalogue_of(selectors.catalogue_rows(), first)
    if gone := set(first) - set(catalogue.ids):
        logger.warning("the live ranker cannot be used: items that it knows are gone", items=len(gone))
        data = None
    nothing = Interactions.none(len(catalogue))
    model = FeedModel.parse(data, catalogue) if data is not None else FeedModel(fit_sources(nothing, catalogue), None)
    return State(model, catalogue, live.digest if live is not None else "", time.monotonic())


def catalogue_of(rows: Iterable[selectors.ItemRow], first: tuple[str, ...] = ()) -> Catalogue:
    """first: ids of items that come first, in this order."""
    order = {item: place for place, item in enumerate(first)}
    items = sorted(rows, key=lambda row: order.get(row.id, len(order)))
    topics, edges = selectors.topic_graph()
    numbers = {slug: place for place, slug in enumerate(topics)}
    pairs = [(place, numbers[slug]) for place, item in enumerate(items) for slug in item.topics if slug in numbers]
    needs = [(numbers[after], numbers[before]) for before, after in edges]
    return Catalogue(
        ids=[item.id for item in items],
        titles=[item.title for item in items],
        subjects=[item.subject for item in items],
        authors=[item.author for item in items],
        languages=[item.language for item in items],
        tags=[frozenset(item.tags) for item in items],
        levels=np.array([LEVELS.index(item.level) if item.level in LEVELS else -1 for item in items], np.int64),
        vectors=np.stack([item.embedding for item in items]) if items else np.zeros((0, 1), np.float32),
        educational=np.array([item.educational for item in items], np.float32),
        quality=np.array([item.quality for item in items], np.float32),
        created=np.array([item.created_at.timestamp() for item in items], float),
        trend=np.array([item.trend for item in items], np.float32),
        impressions=np.array([item.impressions for item in items], np.int64),
        shown=np.array([item.shown for item in items], bool),
        topics=incidence(pairs, (len(items), len(topics))),
        topic_slugs=list(topics),
        topic_names=list(topics.values()),
        prerequisites=incidence(needs, (len(topics), len(topics))),
    )


def incidence(pairs: list[tuple[int, int]], shape: tuple[int, int]) -> csr_matrix:
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    return csr_matrix((np.ones(len(pairs), np.float32), (rows, columns)), shape=shape)


@job_task("workers.fit_feed")
def fit_feed(job: JobRun) -> dict[str, Any]:
    """Learn a ranker, and let it go live unless it foresees held-out events less well than the live one does.

    The result has its `digest`, the `figures` of both and of popularity, and whether it went `live`.
    """
    catalogue = catalogue_of(selectors.catalogue_rows())
    past = everything(catalogue)
    last = past.last_share(0.0)
    before, after = past.keep(~last), past.keep(last)
    ranker = fit_ranker(before, catalogue)
    early = FeedModel(fit_sources(before, catalogue), ranker)
    live = state().model
    rivals = {"new": early, "added_up": FeedModel(early.sources, None)}
    if live.ranker is not None and ranker is not None and live.ranker.num_feature() == ranker.num_feature():
        rivals["live"] = FeedModel(early.sources, live.ranker)
    try:
        figures = compared(rivals, before, some_of(after))
    except BadFile as error:  # most items may not have been read by models yet
        raise Refused("too_little", f"a ranker cannot be judged yet: {error}") from error
    data = FeedModel(fit_sources(past, catalogue), ranker, tuple(catalogue.ids)).dump()
    rival = "live" if "live" in figures else "added_up"
    goes_live = figures["new"]["ndcg"] >= figures[rival]["ndcg"] - ALLOWANCE
    digest = sha256(data).hexdigest()
    verdict = f"NDCG@10 is {figures['new']['ndcg']:.4f}, that of {rival.replace('_', ' ')} {figures[rival]['ndcg']:.4f}"
    services.ranker_record(
        data=data, digest=digest, figures=figures, events=len(past), verdict=verdict, goes_live=goes_live
    )
    return {"digest": digest, "figures": figures, "live": goes_live}


def some_of(after: Interactions) -> Interactions:
    """What some learners did, drawn from all of them, the same each time."""
    learners = np.unique(after.users)
    if len(learners) <= JUDGED_BY:
        return after
    return after.keep(np.isin(after.users, np.random.default_rng(1).choice(learners, JUDGED_BY, replace=False)))


def everything(catalogue: Catalogue) -> Interactions:
    """What all learners took to lately."""
    rows = np.frombuffer(selectors.history_dump(item_ids=catalogue.ids), selectors.HISTORY_ROW)
    learners = int(rows["user"].max()) + 1 if len(rows) else 0
    columns = (rows["user"].astype(np.int64), rows["item"].astype(np.int64), rows["at"].astype(float))
    return Interactions.of(*columns, rows["weight"].astype(np.float32), (learners, len(catalogue)))
