"""What `manage.py export_model` writes: transformers and llama.cpp load it and say what the adapted model says.

The adapter is a random LoRA, large enough that its answers differ from the base's and small enough that they are text.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import xllamacpp
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.workers.conftest import MODELS_DIR, gemma_folder, greedy
from workers.engine.lora import adapter_digest
from workers.models.export import export, main
from workers.models.load import LoadedModel, load
from workers.models.template import Message, render
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BEGINNINGS = [
    "The capital of France is",
    "Photosynthesis is the process by which plants",
    "def fibonacci(n):\n    ",
    "Why is the sky blue? The light of the sun is scattered by",
    "Water boils at 100 degrees because",
    "A triangle has three sides; a square has",
    "La photosynthèse est le processus par lequel",
    "To solve 3x + 5 = 20, first subtract",
    "The French Revolution began in 1789 when the king",
    "In music, an octave is the interval between",
    "Once upon a time, in a village by the sea, there lived",
    "| planet | moons |\n|---|---|\n| Mars |",
]
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "  Two\n\n\nlines, naïve 漢字 "},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "developer", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": ""},
    ],
]


Exported = Callable[..., Path]


class Adapted(NamedTuple):
    """A PEFT folder, and the float32 model into which PEFT merged it."""

    folder: Path
    model: PreTrainedModel


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(gemma_folder(), dtype=torch.float32)
    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=2, target_modules=LINEAR, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    model.save_pretrained(folder)
    return Adapted(folder, model.merge_and_unload().requires_grad_(False))


@pytest.fixture(scope="module")
def exported(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Runs the command with the adapter, once for each set of options; returns the folder."""
    folders = tmp_path_factory.mktemp("exports")

    def exported(**options: str) -> Path:
        folder = folders / "-".join(options.values())
        if not folder.exists():
            named = [word for name, value in options.items() for word in (f"--{name}", value)]
            command(folder, "--adapter", str(adapted.folder), *named)
        return folder

    return exported


def command(output: Path, *arguments: str) -> None:
    """What `manage.py export_model` runs."""
    places = (
        f"--{kind}-dir={folder}" for kind, folder in (("models", MODELS_DIR), ("adapters", output), ("exports", output))
    )
    main(["--model", "gemma-3-270m", *places, "--output", str(output), *arguments])


class LlamaCpp:
    """A GGUF file in llama.cpp, on one thread, greedy."""

    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 512
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.swa_full = True  # else a prompt's beginning is computed again for each of its tokens
        parameters.warmup = False
        parameters.verbosity = 0
        self.server = xllamacpp.Server(parameters)

    def continues(self, tokens: list[int], count: int, **options: object) -> list[int]:
        """The tokens that follow; among them the one that ended the answer, if one did."""
        answer = self.server.handle_completions(
            {"prompt": tokens, "max_tokens": count, "temperature": 0, "logprobs": 1, **options}
        )
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


class Continuation(NamedTuple):
    tokens: list[int]
    start: int  # of what llama.cpp wrote
    logits: Tensor  # of the adapted model in float32 at each token: [tokens, vocabulary]


@pytest.fixture(scope="module")
def f16(exported: Exported) -> LlamaCpp:
    [path] = exported(format="gguf", quantisation="f16").glob("*.gguf")
    return LlamaCpp(path)


@pytest.fixture(scope="module")
def continuations(f16: LlamaCpp, adapted: Adapted, tokenizer: Tokenizer) -> list[Continuation]:
    """24 tokens by llama.cpp after each beginning."""
    written = []
    for text in BEGINNINGS:
        prompt = [tokenizer.bos, *tokenizer.encode(text)]
        tokens = prompt + f16.continues(prompt, 24)
        written.append(Continuation(tokens, len(prompt), adapted.model(torch.tensor([tokens])).logits[0]))
    return written


def test_a_merged_folder_is_a_model_like_any_other(exported: Exported, adapted: Adapted, gemma: LoadedModel) -> None:
    folder = exported(format="merged")
    merged = load(str(folder), folder.parent / "models", device="cpu", dtype="float32")
    for name, weight in adapted.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight.bfloat16().float()), name
    assert merged.stop_ids == {1, 106}
    assert merged.model.generation_config.eos_token_id == [1, 106]
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["base_digest"], meta["adapter_digest"]) == (gemma.digest, adapter_digest(adapted.folder))
    prompt = [2, *merged.tokenizer.encode(BEGINNINGS[0])]
    assert greedy(merged.model, prompt, 8) != greedy(gemma.model, prompt, 8)


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_the_chat_template_says_what_render_says(
    exported: Exported, tokenizer: Tokenizer, generation_prompt: bool
) -> None:
    theirs = AutoTokenizer.from_pretrained(exported(format="merged"))
    for messages in CONVERSATIONS:
        tokens = theirs.apply_chat_template(messages, add_generation_prompt=generation_prompt)["input_ids"]
        assert tokens == render(tokenizer, messages, generation_prompt)
    with pytest.raises(Exception, match="role tool is not one of system, developer, user, assistant"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


def test_llama_cpp_says_in_f16_what_the_model_says_in_float32(continuations: list[Continuation]) -> None:
    """Each token that llama.cpp chose is the likeliest in float32, so its text is our greedy text, for at least 10 of
    12 beginnings (measured: all). Where one differs, f16 has turned a near tie: the logits are less than 0.1 apart."""
    same = 0
    for tokens, start, logits in continuations:
        behind = logits[start - 1 : -1].amax(1) - logits[range(start - 1, len(tokens) - 1), tokens[start:]]
        differs = behind.nonzero()
        assert len(differs) == 0 or behind[differs[0]] < 0.1
        same += len(differs) == 0
    assert same >= 10


@pytest.mark.nightly
def test_q8_0_chooses_the_same_next_token(
    exported: Exported, continuations: list[Continuation], tokenizer: Tokenizer
) -> None:
    """The likeliest token after every beginning of every text, as in float32, at 95 in 100 positions (measured: 96.3 of
    378). The rest are near ties: llama.cpp also rounds activations to eight bits."""
    [path] = exported(format="gguf", quantisation="q8_0").glob("*.gguf")
    llama_cpp = LlamaCpp(path)
    chosen, likeliest = [], []
    for tokens, _, logits in continuations:
        for end in range(4, len(tokens)):
            chosen += llama_cpp.continues(tokens[:end], 1)
        likeliest += logits[3:-1].argmax(1).tolist()
    agreed = [a == b for a, b in zip(chosen, likeliest, strict=True)]
    assert len(agreed) > 300
    assert sum(agreed) / len(agreed) >= 0.95


@pytest.mark.parametrize("end", [1, 106])
def test_llama_cpp_ends_an_answer_at_either_end_token(f16: LlamaCpp, end: int) -> None:
    assert f16.continues([2, 818], 8, logit_bias=[[end, 1000.0]]) == [end]


def test_llama_cpp_chats_in_our_turns(f16: LlamaCpp, tokenizer: Tokenizer) -> None:
    for messages in CONVERSATIONS:
        prompt = render(tokenizer, messages)
        chat = f16.server.handle_chat_completions({"messages": messages, "max_tokens": 8, "temperature": 0})
        assert chat["usage"]["prompt_tokens"] == len(prompt)
        assert chat["choices"][0]["message"]["content"] == tokenizer.decode(f16.continues(prompt, 8))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Gemma 3 of other sizes than the packaged one's, with its vocabulary."""
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=262_144,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=7,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=16,
            max_position_embeddings=512,
        )
    )
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.3 if name.endswith("norm.weight") else 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gemma_folder() / name, folder)
    return folder


def test_transformers_reads_the_same_weights_from_a_gguf(tiny: Path, tmp_path: Path) -> None:
    export(tmp_path / "out", model=str(tiny), models_dir=tmp_path, form="gguf", quantisation="bf16")
    path = tmp_path / "out" / "out.gguf"
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).requires_grad_(False)
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    weights = dict(model.named_parameters())
    assert read["tensors"].keys() == weights.keys()
    for name, weight in weights.items():
        rounded = weight if weight.dim() == 1 else weight.bfloat16().float()
        torch.testing.assert_close(read["tensors"][name], rounded, rtol=0, atol=2e-7)  # 1 + w rounds w
    assert {key: read["config"][key] for key in ("hidden_size", "num_hidden_layers", "sliding_window")} == {
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "sliding_window": 16,
    }

    for weight in weights.values():
        if weight.dim() == 2:
            weight.copy_(weight.bfloat16())
    prompt = [2, *range(1000, 1060)]  # past the window
    assert LlamaCpp(path).continues(prompt, 12) == greedy(model, prompt, 12)


def test_what_cannot_be_a_gguf_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    with pytest.raises(Refused, match="final_logit_softcapping"):
        export(tmp_path / "out", model=str(tiny), models_dir=tmp_path, form="gguf")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_an_adapter_of_another_model_is_refused(adapted: Adapted, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"has weights for model\.layers\.10.*where this model takes none"):
        export(tmp_path / "out", model=str(tiny), models_dir=tmp_path, adapter=adapted.folder)
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    weights = load_file(adapted.folder / "adapter_model.safetensors")
    for extra, message in {
        layer.format(18): r"has weights for model\.layers\.18\.self_attn\.q_proj, where this model takes none",
        "lm_head": "has weights for lm_head, where this model takes none",
    }.items():
        folder = shutil.copytree(adapted.folder, tmp_path / extra)
        save_file(weights | {extra: weights[layer.format(0)].clone()}, folder / "adapter_model.safetensors")
        with pytest.raises(Refused, match=message):
            export(tmp_path / "out", model="gemma-3-270m", models_dir=MODELS_DIR, adapter=folder)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "meta.json").write_text(json.dumps({"base_digest": "f" * 64}))
    with pytest.raises(Refused, match=r"has the base_digest ffff.*: train on this model"):
        export(tmp_path / "out", model="gemma-3-270m", models_dir=MODELS_DIR, adapter=folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "meta.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(Refused, match='has init_lora_weights = "pissa", which is not served'):
        export(tmp_path / "out", model="gemma-3-270m", models_dir=MODELS_DIR, adapter=folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(Refused, match=r"adapter_model\.safetensors does not exist"):
        export(tmp_path / "out", model="gemma-3-270m", models_dir=MODELS_DIR, adapter=folder)
    assert not (tmp_path / "out").exists()


def test_errors_say_the_fix_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=f"{tmp_path} is there already: delete it, or choose another folder"):
        command(tmp_path)
    with pytest.raises(SystemExit, match=r"neither tutor@abc nor .*/abc is a PEFT folder"):
        command(tmp_path / "out", "--adapter", "tutor@abc")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(SystemExit, match=r"needs 511 MiB and 1 are free: make room"):
        command(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_manage_py_fills_in_the_settings() -> None:
    shown = subprocess.run(
        [sys.executable, "manage.py", "export_model", "--format", "pdf"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "--format: invalid choice: 'pdf' (choose from" in shown.stderr
