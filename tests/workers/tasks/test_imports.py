"""Adapters from outside, checked by a worker against a tiny random Gemma 3, and kept on a disk or in S3."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from apps.inference import store
from apps.inference.models import Adapter, Route, RouteChange
from apps.jobs.models import Job, State
from apps.jobs.services import job_create
from workers.engine.lora import adapter_digest
from workers.models.packaged import weights_sha256
from workers.protocols import EngineCrashed, Refused
from workers.tasks import __main__ as program
from workers.tasks import imports, runtime

pytestmark = pytest.mark.django_db(transaction=True)

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Gemma3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def peft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT's save_pretrained wrote of an adapter of it."""
    model = Gemma3ForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    folder = tmp_path_factory.mktemp("peft") / "maths"
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def kept(settings: Any, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers have adapters, which is the store unless a test says otherwise."""
    location = tmp_path / "adapters"
    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": location}}
    settings.STORAGES = {**settings.STORAGES, "adapters": backend}
    for name, value in {"MODEL": str(base), "MODELS_DIR": tmp_path / "models", "ADAPTERS_DIR": location}.items():
        monkeypatch.setattr(f"lyo.env.{name}", value)
    return location


@pytest.fixture
def folder(peft: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(peft, tmp_path / "maths")


def upload(folder: Path, **about: Any) -> Job:
    """The job that the web side makes of an upload, after a worker's task."""
    incoming = f"incoming/{uuid4()}"
    store.put(incoming, folder)
    about = {"suffix": "maths", "task": "tutoring", "subject": "math", "licence": "MIT", **about}
    job = job_create(kind="import_adapter", request={"folder": incoming, **about})
    imports.import_adapter(str(job.id))
    assert store.names(incoming) == []
    job.refresh_from_db()
    return job


def meta(folder: Path, **fields: Any) -> None:
    (folder / "meta.json").write_text(json.dumps(fields))


def test_an_upload_becomes_an_adapter_under_its_digest(folder: Path, kept: Path, base: Path) -> None:
    meta(folder, recipe={"r": 4}, seed=3, dataset_version="d" * 64, metrics={"step": 9}, licence=7, odd=[1])
    job = upload(folder)
    made = Adapter.objects.get()
    digest = adapter_digest(folder)
    assert (job.state, job.result) == (State.SUCCEEDED, {"adapter": made.name, "id": str(made.id)})
    assert made.name == f"ft:tiny:maths@{digest}"
    assert (made.base_model, made.base_digest) == ("tiny", weights_sha256(base))
    assert (made.task, made.subject, made.licence) == ("tutoring", "math", "MIT")
    assert (made.recipe, made.metrics, made.dataset_version) == ({"r": 4, "seed": 3}, {"step": 9}, "d" * 64)
    assert made.is_servable
    published = kept / digest
    assert made.size == sum(path.stat().st_size for path in published.iterdir())
    assert adapter_digest(published) == digest
    assert json.loads((published / "meta.json").read_text()) == {
        "recipe": {"r": 4},
        "seed": 3,
        "dataset_version": "d" * 64,
        "metrics": {"step": 9},
        "licence": 7,
        "odd": [1],
        "base_model": "tiny",
        "base_digest": weights_sha256(base),
    }


def test_patterns_of_modules_are_written_out_so_that_nobody_matches_them_again(folder: Path, kept: Path) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    hostile = {"target_modules": "(.*)*(q|v)_proj", "alpha_pattern": {"(.*)*v_proj": 64}, "layers_pattern": "(a+)+b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | hostile))
    job = upload(folder)
    assert job.state == State.SUCCEEDED
    digest = Adapter.objects.get().digest
    written = json.loads((kept / digest / "adapter_config.json").read_text())
    modules = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qv"]
    assert (written["target_modules"], written["layers_pattern"]) == (modules, None)
    assert written["alpha_pattern"] == {module: 64 for module in modules if "v_proj" in module}
    assert adapter_digest(kept / digest) == digest
    assert json.loads((folder / "adapter_config.json").read_text()) == settings | hostile


def test_the_same_weights_are_the_same_adapter(folder: Path) -> None:
    first = upload(folder)
    assert upload(folder, suffix="again").result == first.result
    assert Adapter.objects.count() == 1


def spoil_base(folder: Path) -> None:
    meta(folder, base_digest="c" * 64)


def spoil_values(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[min(weights)][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)


def spoil_modules(folder: Path) -> None:
    weights = {key.replace("layers.1", "layers.7"): value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)


def spoil_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_base, f"meta.json has the base_digest {'c' * 64}, this is "),
        (spoil_values, f"{WEIGHTS} has values for model.layers.0.self_attn.q_proj that are not finite"),
        (spoil_modules, f"{WEIGHTS} has weights for model.layers.7.self_attn.q_proj"),
        (spoil_file, f"{WEIGHTS} is not a safetensors file"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_and_not_kept(
    folder: Path, kept: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    job = upload(folder)
    assert (job.state, job.error["code"]) == (State.FAILED, "adapter_refused")
    assert job.error["detail"].startswith(words)
    assert Adapter.objects.count() == 0
    assert {path.name for path in kept.iterdir()} <= {"incoming"}


# --- from a shell ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["import_adapter", *argv])
        return program.main()

    return run


def test_the_command_makes_an_adapter_live_where_nobody_has_decided_yet(
    folder: Path, base: Path, command: Callable[..., str]
) -> None:
    meta(folder, base_model="tiny", base_digest=weights_sha256(base))
    said = command(str(folder), "--task=tutoring", "--live")
    made = Adapter.objects.get()
    assert (made.name, said) == (f"ft:tiny:maths@{made.digest}", f"{made.name} is live for tutoring")
    assert Route.objects.get().live == made
    assert command(str(folder), "--task=tutoring", "--live") == f"{made.name} is there"
    assert RouteChange.objects.count() == 1
    Route.objects.update(live=None)
    command(str(folder), "--task=tutoring", "--live")
    assert Route.objects.get().live is None


def test_the_command_costs_little_where_the_adapter_is_there_and_mends_a_lost_folder(
    folder: Path, base: Path, kept: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta(folder, base_model="tiny", base_digest=weights_sha256(base))
    command(str(folder))
    read = imports.read_updates
    monkeypatch.setattr(imports, "read_updates", None)
    command(str(folder))
    monkeypatch.setattr(imports, "read_updates", read)
    (published,) = kept.iterdir()
    shutil.rmtree(published)
    command(str(folder))
    assert adapter_digest(published) == published.name
    assert Adapter.objects.count() == 1


@pytest.mark.parametrize("foreign", [{"base_model": "other"}, {"base_model": "tiny", "base_digest": "c" * 64}])
def test_the_command_passes_over_an_adapter_of_another_base(
    folder: Path, command: Callable[..., str], foreign: dict[str, str]
) -> None:
    meta(folder, **foreign)
    with pytest.raises(Refused, match="was made for") as refusal:
        command(str(folder), "--task=tutoring", "--live")
    assert refusal.value.code == "other_base"
    assert (Adapter.objects.count(), Route.objects.count()) == (0, 0)


# --- S3 ---


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket, in which adapters are now kept below a prefix."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": s3,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"b{uuid4().hex}"
    bucket = boto3.resource("s3").create_bucket(Bucket=name)
    backend = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {"bucket_name": name, "location": "lyo"}}
    settings.STORAGES = {**settings.STORAGES, "adapters": backend}
    return bucket


def test_with_s3_an_upload_is_kept_there_and_another_worker_fetches_it(
    bucket: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = upload(folder)
    assert job.state == State.SUCCEEDED
    name, digest = job.result["adapter"], adapter_digest(folder)
    keys = {item.key for item in bucket.objects.all()}
    assert keys == {f"lyo/{digest}/{file}" for file in ("README.md", "adapter_config.json", WEIGHTS, "meta.json")}

    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr("lyo.env.ADAPTERS_DIR", elsewhere)
    runtime.have_adapter(name)
    assert adapter_digest(elsewhere / digest) == digest
    assert [path.name for path in elsewhere.iterdir()] == [digest]
    bucket.objects.all().delete()
    runtime.have_adapter(name)


def test_an_adapter_that_s3_does_not_have_is_left_to_the_engine_to_refuse(bucket: Any, kept: Path) -> None:
    runtime.have_adapter("ft:tiny:x@0123456789abcdef")
    assert not kept.exists()


def test_a_store_that_fails_sends_the_job_back(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.delete()
    with pytest.raises(EngineCrashed, match="cannot be fetched"):
        runtime.have_adapter("ft:tiny:x@0123456789abcdef")


def test_of_two_that_fetch_at_once_one_wins_and_both_have_it(bucket: Any, folder: Path, kept: Path) -> None:
    store.put("0123456789abcdef", folder)
    with store.beside(kept / "0123456789abcdef") as late:
        store.get("0123456789abcdef", late)
        store.fetch("0123456789abcdef")
    assert [path.name for path in kept.iterdir()] == ["0123456789abcdef"]
