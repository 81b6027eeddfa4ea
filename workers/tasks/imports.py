"""Adapters from outside: checked against the model that is served, then kept under their digest like our own."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.inference import store
from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from lyo import env
from workers.engine.lora import CONFIG, META, adapter_digest, read_config, read_json, read_updates
from workers.engine.patterns import plain_config
from workers.engine.threads import aside
from workers.models.folder import model_folder
from workers.models.load import linear_shapes
from workers.models.registry import resolve
from workers.protocols import Refused
from workers.tasks.claimed import JobRun, job_task


@job_task("workers.import_adapter")
def import_adapter(job: JobRun) -> dict[str, Any]:
    """The result has the adapter's `id` and, as `adapter`, its name."""
    request = dict(job.request)
    incoming = request.pop("folder")
    with TemporaryDirectory(prefix="lyo-adapter-") as temporary:
        folder = Path(temporary)
        store.get(incoming, folder)
        try:
            adapter = adapter_import(folder, **request)
        except Refused as refusal:
            raise Refused(refusal.code, str(refusal).replace(f"{folder}/", "")) from refusal
    return {"adapter": adapter.name, "id": str(adapter.id)}


def adapter_find_or_import(folder: Path, **about: str) -> Adapter:
    """As `adapter_import`, at little cost where the adapter is there.

    Raises `Refused` as `other_base` where meta.json names another model, or other weights of it.
    """
    spec = resolve(env.MODEL)
    meta = read_json(folder / META)
    if meta.get("base_model") != spec.name:
        raise Refused("other_base", f"{folder} was made for {meta.get('base_model')}, this is {spec.name}")
    base_digest = model_folder(spec, env.MODELS_DIR)[1]
    if meta.get("base_digest") != base_digest:
        raise Refused("other_base", f"{folder} was made for weights {meta.get('base_digest')}, these are {base_digest}")
    digest = adapter_digest(folder)
    there = (env.ADAPTERS_DIR / digest).is_dir() and store.names(digest)
    adapter = Adapter.objects.filter(digest=digest).first() if there else None
    return adapter or adapter_import(folder, **about)


def adapter_import(folder: Path, *, suffix: str, task: str = "", subject: str = "", licence: str = "") -> Adapter:
    """Publish a PEFT folder, and enter it; what is there already is the adapter that it is.

    Patterns of modules' names are written out: nobody who reads the folder later has a stranger's to match.
    Raises `Refused` for what the engine would: another base model, weights that are not finite, that change nothing, or
    of modules that the model does not have.
    """
    spec = resolve(env.MODEL)
    base, base_digest = model_folder(spec, env.MODELS_DIR)
    updates = aside(lambda: read_updates(folder, linear_shapes(base), base_digest, max_rank=env.MAX_LORA_RANK))
    given_config = read_config(folder)
    config = plain_config(given_config, sorted(updates))
    given = read_json(folder / META) if (folder / META).exists() else {}
    meta = {**given, "base_model": spec.name, "base_digest": base_digest}
    digest = adapter_digest(folder, config)
    published = env.ADAPTERS_DIR / digest
    if not published.is_dir():
        with store.beside(published) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            if config != given_config:
                (copy / CONFIG).write_text(json.dumps(config, indent=2))
            (copy / META).write_text(json.dumps(meta, indent=2))
    store.keep(digest)
    recipe = known(meta, "recipe", dict) or {}
    seed = known(meta, "seed", int)
    return adapter_add(
        suffix=suffix,
        digest=digest,
        base_model=spec.name,
        base_digest=base_digest,
        dataset_version=(known(meta, "dataset_version", str) or "")[:64],
        recipe=recipe if seed is None else {**recipe, "seed": seed},
        metrics=known(meta, "metrics", dict),
        task=task,
        subject=subject,
        licence=licence or known(meta, "licence", str) or "",
        size=sum(path.stat().st_size for path in published.iterdir()),
    )


def known(meta: dict[str, Any], name: str, kind: type) -> Any:
    """What meta.json says, if it is of that kind: others may have written it."""
    value = meta.get(name)
    return value if isinstance(value, kind) else None
