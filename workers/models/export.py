"""Writes a model, or a model with an adapter merged into it, as files that other programs serve.

`merged` is a Hugging Face folder in the base's own dtype, which Lyo loads too; `gguf` is a file for llama.cpp and what
is built on it. Both end an answer where its turn ends, and carry `template.render` as their chat template.

    python manage.py export_model --adapter tutor@1f2e3d4c5b6a7980 --format gguf --quantisation q8_0
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import gguf
import numpy as np
import tokenizers
import torch
from gguf.quants import quant_shape_to_byte_shape
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from workers.engine.lora import adapter_digest, read_updates
from workers.models.folder import model_folder
from workers.models.load import linear_maps
from workers.models.registry import REGISTRY, resolve
from workers.models.template import SPEAKERS, turn_marks
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused

Progress = Callable[[str], None]
Format = Literal["merged", "gguf"]
Quantisation = Literal["f16", "bf16", "q8_0"]

KINDS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
PACKAGED = REGISTRY["gemma-3-270m"]  # its file is the template of every GGUF
TEMPLATE_ONLY = {"general.architecture", "general.basename", "general.size_label"}  # written anew, or its own
SIZES = {  # what a GGUF says of Gemma 3's shape, and the config's names for it
    "gemma3.context_length": "max_position_embeddings",
    "gemma3.embedding_length": "hidden_size",
    "gemma3.block_count": "num_hidden_layers",
    "gemma3.feed_forward_length": "intermediate_size",
    "gemma3.attention.head_count": "num_attention_heads",
    "gemma3.attention.head_count_kv": "num_key_value_heads",
    "gemma3.attention.key_length": "head_dim",
    "gemma3.attention.value_length": "head_dim",
    "gemma3.attention.sliding_window": "sliding_window",
    "gemma3.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
TAKEN_FOR_GRANTED = (  # by llama.cpp, of every Gemma 3
    "layer_types",
    "rope_parameters",
    "query_pre_attn_scalar",
    "hidden_activation",
    "attention_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "tie_word_embeddings",
)
CHAT_TEMPLATE = """\
{%- set speakers = SPEAKERS -%}
{%- set turn = namespace(speaker="") -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role not in speakers -%}
        {{- raise_exception("role " + message.role + " is not one of " + speakers | join(", ")) -}}
    {%- endif -%}
    {%- if speakers[message.role] == turn.speaker -%}
        {{- "\\n\\n" -}}
    {%- else -%}
        {{- "END\\n" if turn.speaker else "" -}}
        {%- set turn.speaker = speakers[message.role] -%}
        {{- "START" + turn.speaker + "\\n" -}}
    {%- endif -%}
    {{- message.content | trim -}}
{%- endfor -%}
{{- "END\\n" if turn.speaker else "" -}}
{{- "STARTmodel\\n" if add_generation_prompt else "" -}}
"""


def export(
    target: Path,
    *,
    model: str,
    models_dir: Path,
    adapter: Path | None = None,
    form: Format = "merged",
    quantisation: Quantisation = "f16",
    progress: Progress = print,
) -> None:
    """Write the new folder `target`: the model, with the LoRA of the PEFT folder `adapter` merged, and a `meta.json`.

    `quantisation` is that of a GGUF's matrices; its norms stay float32. Needs about 8 bytes of memory per parameter.
    A failure leaves nothing behind. Raises `Refused` for what cannot be exported, and OSError.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already: delete it, or choose another folder")
    spec = resolve(model)
    folder, base_digest = model_folder(spec, models_dir, progress)
    meta = {
        "name": spec.name,
        "licence": spec.licence,
        "base_digest": base_digest,
        "adapter_digest": adapter_digest(adapter) if adapter else None,
        "format": form if form == "merged" else f"gguf {quantisation}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    target.parent.mkdir(parents=True, exist_ok=True)  # first of all, for it may not be ours to write to
    progress(f"{spec.name}: loading in float32")
    weights = load_merged(folder, base_digest, adapter)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        written = Path(temporary) / target.name
        written.mkdir()
        progress(f"{spec.name}: writing {meta['format']}")
        if form == "merged":
            write_folder(weights, folder, written)
        else:
            write_gguf(weights, folder, written / f"{target.name}.gguf", quantisation, json.dumps(meta))
        (written / "meta.json").write_text(json.dumps(meta, indent=2))
        written.rename(target)
    progress(f"{spec.name}: done, {target}")


def find_adapter(name: str, adapters_dir: Path) -> Path:
    """The PEFT folder called `name`: itself a folder, or a digest or `name@digest` under `adapters_dir`."""
    for folder in (Path(name), adapters_dir / name.rpartition("@")[2]):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise Refused("adapter_not_found", f"neither {name} nor {folder} is a PEFT folder with an adapter_config.json")


def load_merged(folder: Path, base_digest: str, adapter: Path | None) -> PreTrainedModel:
    """The model of `folder` in float32, with the adapter's low-rank products added to its matrices.

    Refuses an adapter that would not be served.
    """
    disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    model.requires_grad_(False)
    if adapter:
        maps = linear_maps(model)
        shapes = {name: (part.in_features, part.out_features) for name, part in maps.items()}
        for name, update in read_updates(adapter, shapes, base_digest).items():
            maps[name].weight += update.up @ update.down
    return model


def write_folder(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """Write `model` as Hugging Face files, in the dtype and with the tokenizer of the folder `base`."""
    vocabulary = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    model.generation_config.eos_token_id = end_tokens(vocabulary)
    nn.Module.to(model, AutoConfig.from_pretrained(base).dtype or torch.float32)
    require_space(folder, model.get_memory_footprint())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    (folder / "chat_template.jinja").write_text(chat_template(vocabulary))


def write_gguf(model: PreTrainedModel, base: Path, path: Path, quantisation: Quantisation, description: str) -> None:
    """Write `model`, whose tokenizer is in the folder `base`, as a GGUF file.

    What is neither a weight nor a size is copied from the packaged Gemma's file. Refuses what that does not fit:
    another architecture than Gemma 3's text model, another vocabulary. GGUF stores a norm's weight w as 1 + w.
    """
    require_gemma_3(model.config)
    vocabulary = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    matrices, file_type = KINDS[quantisation]
    tensors = [
        (name, weight, matrices if weight.dim() == 2 else gguf.GGMLQuantizationType.F32)
        for name, weight in model.named_parameters()
    ]
    shapes = [quant_shape_to_byte_shape(weight.shape, kind) for _, weight, kind in tensors]
    require_space(path.parent, sum(map(prod, shapes)))
    metadata = packaged_metadata()
    require_vocabulary(vocabulary, metadata[gguf.Keys.Tokenizer.LIST][0], model.config.vocab_size)

    changed = {key: getattr(model.config, name) for key, name in SIZES.items()} | {
        gguf.Keys.General.NAME: path.stem,
        gguf.Keys.General.FILE_TYPE: file_type,
        gguf.Keys.Tokenizer.EOS_ID: end_tokens(vocabulary)[1],  # llama.cpp knows <eos> by its name
    }
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GEMMA3])
    for key, (value, value_type, element_type) in metadata.items():
        writer.add_key_value(key, changed.get(key, value), value_type, element_type)
    writer.add_description(description)
    writer.add_chat_template(chat_template(vocabulary))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, model.config.num_hidden_layers)
    for (name, _, kind), shape in zip(tensors, shapes, strict=True):
        stored_name = names[name.removesuffix(".weight")] + ".weight"
        writer.add_tensor_info(stored_name, shape, np.dtype(np.uint8), prod(shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight, kind in tensors:
        stored = weight + 1 if name.endswith("norm.weight") else weight
        writer.write_tensor_data(gguf.quantize(stored.numpy(), kind))
    writer.close()


@cache  # reading it takes ten seconds, which go into the vocabulary's 262,144 strings
def packaged_metadata() -> dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType]]:
    """What the packaged Gemma's file says beside its weights: values by key, with their type and their elements'."""
    package = import_module(PACKAGED.location)
    with TemporaryDirectory() as folder:
        require_space(Path(folder), sum(chunk.stat().st_size for chunk in package.chunk_paths()))
        fields = gguf.GGUFReader(package.assemble(Path(folder) / package.MODEL_NAME)).fields
    return {
        key: (field.contents(), field.types[0], field.types[-1])
        for key, field in fields.items()
        if not key.startswith("GGUF.") and key not in TEMPLATE_ONLY
    }


def chat_template(vocabulary: tokenizers.Tokenizer) -> str:
    """Jinja that says of a conversation what `template.render` says."""
    start, end = (vocabulary.decode([mark], skip_special_tokens=False) for mark in turn_marks(Tokenizer(vocabulary)))
    return CHAT_TEMPLATE.replace("SPEAKERS", json.dumps(SPEAKERS)).replace("START", start).replace("END", end)


def end_tokens(vocabulary: tokenizers.Tokenizer) -> list[int]:
    tokenizer = Tokenizer(vocabulary)
    return [tokenizer.control("<eos>"), turn_marks(tokenizer)[1]]


def require_gemma_3(config: PretrainedConfig) -> None:
    """Refuse a model that llama.cpp would run otherwise than its config says."""
    if not isinstance(config, Gemma3TextConfig):
        raise Refused("unsupported_model", f"only Gemma 3's text models become GGUF here, not {config.model_type}")
    sizes = {name: getattr(config, name) for name in SIZES.values()}
    usual = Gemma3TextConfig(**sizes, query_pre_attn_scalar=config.head_dim)
    if unusual := [name for name in TAKEN_FOR_GRANTED if getattr(config, name) != getattr(usual, name)]:
        raise Refused("unsupported_model", f"a GGUF cannot say that the model's {', '.join(unusual)} are unusual")


def require_vocabulary(vocabulary: tokenizers.Tokenizer, pieces: list[str], size: int) -> None:
    """Refuse a tokenizer other than the one that the GGUF will hold, which writes runs of spaces as they are."""
    ours = [vocabulary.id_to_token(number) for number in range(size)]
    if ours != [piece.replace(" ", "▁") for piece in pieces]:
        raise Refused("unsupported_tokenizer", f"the model's vocabulary is not that of {PACKAGED.name}")


def require_space(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise Refused(
            "disk_full",
            f"{folder} needs {needed >> 20} MiB and {free >> 20} are free: make room, or choose another disk",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="manage.py export_model",
        description="Write the model, with an adapter merged into it, as a Hugging Face folder or as a GGUF file.",
    )
    parser.add_argument("--adapter", help="name@digest, a digest, or a PEFT folder; without it the base is written")
    parser.add_argument("--format", choices=["merged", "gguf"], default="merged")
    parser.add_argument("--quantisation", choices=list(KINDS), default="f16", help="of a GGUF")
    parser.add_argument("--output", type=Path, help="a new folder; else one under --exports-dir")
    parser.add_argument("--model", required=True, help="as LYO_MODEL, which is the default")
    parser.add_argument("--models-dir", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--adapters-dir", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--exports-dir", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = [options.model, options.adapter, options.format if options.format == "merged" else options.quantisation]
    name = "-".join(Path(part).name for part in parts if part)
    try:
        export(
            options.output or options.exports_dir / name,
            model=options.model,
            models_dir=options.models_dir,
            adapter=find_adapter(options.adapter, options.adapters_dir) if options.adapter else None,
            form=options.format,
            quantisation=options.quantisation,
            progress=lambda line: print(line, flush=True),
        )
    except (Refused, OSError) as error:
        sys.exit(f"cannot export {options.model}: {error}")


if __name__ == "__main__":
    main()
