"""Adapters with what their evaluations say."""

import json
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from rest_framework.exceptions import NotFound

from apps.inference import selectors as inference
from apps.inference import store
from apps.inference.models import Adapter
from apps.training.archives import CARD, PIECE, pack
from apps.training.models import Evaluation


def adapter_list(*, reports: bool = False, **filters: Any) -> QuerySet[Adapter]:
    """Adapters as `inference.selectors.adapter_list` has them, each with `last_evaluations`: one for each purpose."""
    ended = Evaluation.objects.filter(passed__isnull=False).defer(*(() if reports else ("report",)))
    last = ended.order_by("adapter_id", "task", "subject", "-created_at").distinct("adapter_id", "task", "subject")
    return inference.adapter_list(**filters).prefetch_related(
        Prefetch("evaluations", queryset=last, to_attr="last_evaluations")
    )


def adapter_get(*, adapter_id: UUID) -> Adapter:
    """Raises `NotFound`."""
    adapter = adapter_list(reports=True).filter(id=adapter_id).first()
    if adapter is None:
        raise NotFound
    return adapter


def adapter_metrics(adapter: Any, *, reports: bool) -> dict[str, Any]:
    """Of an adapter of `adapter_list`: those of its training, and by task (and subject) those of its evaluations."""
    evaluations = {
        f"{evaluation.task}/{evaluation.subject}" if evaluation.subject else evaluation.task: {
            "id": str(evaluation.id),
            "passed": evaluation.passed,
            "failures": evaluation.failures,
            **({"report": evaluation.report} if reports else {}),
        }
        for evaluation in adapter.last_evaluations
    }
    return {"training": adapter.metrics, "evaluations": evaluations}


CARD_TEMPLATE = """\
---
base_model: {base_model}
library_name: peft
tags: [lora, lyo]
---

# {name}

A LoRA adapter, in PEFT's format. Its digest, {digest}, is that of its weights and settings.

| | |
|---|---|
| Base model | {base_model}, weights sha256 {base_digest} |
| Task | {task} |
| Data set version | {dataset_version} |
| Seed | {seed} |
| Made | {created_at:%Y-%m-%d} |

## Recipe

{recipe}

## Metrics of its training

{metrics}

## Evaluations

{evaluations}

## Licence

{licence}
"""


def adapter_card(adapter: Any) -> str:
    """The model card, in Markdown, of an adapter of `adapter_list`."""
    evaluations = [
        f"### {name}: {'let through' if evaluation['passed'] else 'held back'}\n\n"
        + "".join(f"- {failure}\n" for failure in evaluation["failures"])
        + f"\n{_block(evaluation['report'])}"
        for name, evaluation in adapter_metrics(adapter, reports=True)["evaluations"].items()
    ]
    return CARD_TEMPLATE.format(
        name=adapter.name,
        digest=adapter.digest,
        base_model=adapter.base_model,
        base_digest=adapter.base_digest,
        task=", ".join(filter(None, (adapter.task, adapter.subject))) or "none in particular",
        dataset_version=adapter.dataset_version or "not known",
        seed=adapter.recipe.get("seed", "not known"),
        created_at=adapter.created_at,
        recipe=_block(adapter.recipe),
        metrics=_block(adapter.metrics),
        evaluations="\n\n".join(evaluations) or "None.",
        licence=adapter.licence or "That of the base model; nothing else is known.",
    )


def _block(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


def adapter_archive(adapter: Adapter) -> Iterator[bytes]:
    """The adapter's folder as a .zip, with its card as it now is; `NotFound` where the store does not have it."""
    names = [name for name in store.names(adapter.digest) if name != CARD]
    if not names:
        raise NotFound(f"The store has no folder {adapter.digest}.")
    return _archive(adapter.digest, names, adapter_card(adapter))


def _archive(folder: str, names: list[str], card: str) -> Iterator[bytes]:
    files = ((name, store.storage().open(f"{folder}/{name}")) for name in names)
    with SpooledTemporaryFile(max_size=16 * PIECE) as archive:
        pack(chain([(CARD, BytesIO(card.encode()))], files), archive)
        archive.seek(0)
        while piece := archive.read(PIECE):
            yield piece
