"""Loads a model's weights and tokenizer. Only safetensors are read, and no code that comes with a model is run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.models.folder import model_folder
from workers.models.registry import resolve
from workers.models.template import turn_marks
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. `digest` is the sha256 of its weights; `stop_ids` are the tokens that end an answer.

    dtype: what the engine is to compute in; None: the model's own. int8: whether it is to round the output matrix to 8
    bits, where it can; None: where that is faster.
    """

    name: str
    digest: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context_tokens: int
    dtype: torch.dtype | None = None
    int8: bool | None = False


def load(name: str, models_dir: Path, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load the model `name` (see `registry.resolve`) for inference.

    device: auto, cpu, cuda, mps. dtype: auto, int8, or a torch name such as float32. auto is what hardware multiplies
    fastest: int8, else bfloat16, else float32. int8 is an output matrix in 8 bits, on a CPU with kernels for that, and
    the rest in bfloat16 or float32. On a CPU the weights of auto and int8 are loaded as they are in their file, and
    the engine makes those that it needs of them.
    Raises `Refused` for a name or a model that cannot be served.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = resolve(name)
    folder, digest = model_folder(spec, models_dir)
    place = torch.device(best_device() if device == "auto" else device)
    computed = best_dtype(place) if dtype in ("auto", "int8") else getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if place.type == "cpu" and dtype in ("auto", "int8") else computed,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if getattr(model.config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
        raise Refused("unsupported_model", f"{spec.name} reads text in both directions: it cannot answer")
    nn.Module.to(model, place).requires_grad_(False).train(False)
    tokenizer = Tokenizer.from_folder(folder)
    return LoadedModel(
        name=spec.name,
        digest=digest,
        model=model,
        tokenizer=tokenizer,
        stop_ids=frozenset({tokenizer.control("<eos>"), turn_marks(tokenizer)[1]}),
        context_tokens=model.config.get_text_config().max_position_embeddings,
        dtype=computed,
        int8=None if dtype == "auto" else dtype == "int8",
    )


def linear_maps(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The decoder's linear modules, by their names in the whole model: what an adapter may change."""
    inside = {id(part) for part in model.get_decoder().modules()}
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in inside}


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of the decoder's linear modules, from the model's configuration: no weights are read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return {name: (part.in_features, part.out_features) for name, part in linear_maps(model).items()}


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        fast = abilities.get("avx512_bf16") or abilities.get("amx_bf16")
    else:
        fast = device.type == "mps" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
