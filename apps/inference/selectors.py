"""The models that a client may name."""

from dataclasses import dataclass

from apps.inference.errors import ModelNotFound
from lyo import env


@dataclass(frozen=True, slots=True)
class ServedModel:
    id: str
    kind: str  # of the jobs that it serves
    alias: str | None = None


EMBEDDER = ServedModel("all-MiniLM-L6-v2", kind="embed", alias="embedding")


def model_list() -> list[ServedModel]:
    """All models, the default one first."""
    return [ServedModel(env.MODEL, kind="chat"), EMBEDDER]


def model_get(*, model_id: str, kind: str | None = None) -> ServedModel:
    """The model of that id or alias; raises `ModelNotFound`, also where it does not serve `kind`."""
    for model in model_list():
        if model_id in (model.id, model.alias) and kind in (None, model.kind):
            return model
    raise ModelNotFound(model_id)
