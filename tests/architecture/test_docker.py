"""What can be known of docker/ without a Docker engine. Building and running the images is described in the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apps.jobs.dispatch import QUEUES
from lyo import env
from lyo.stack import FOR_ENGINE

DOCKER = env.BASE_DIR / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILES = [DOCKER / "web.Dockerfile", DOCKER / "worker.Dockerfile"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and arguments of each instruction, in order, without comments."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def named_settings(path: Path) -> set[str]:
    return set(re.findall(r"\bLYO_[A-Z_]+", path.read_text()))


def test_compose_follows_the_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_sets_for_the_engine_what_the_stack_sets() -> None:
    command = dict(instructions(DOCKER / "worker.Dockerfile"))["CMD"]
    assert dict(re.findall(r"([A-Z_]+)=(\S+)", command.partition("exec celery")[0])) == FOR_ENGINE


BY_TAG = ("docker.io/nginxinc/nginx-unprivileged:1.28.0-alpine",)  # compose.yaml says why


def test_images_from_elsewhere_are_pinned_by_tag_and_digest() -> None:
    images = {
        service["image"] for service in yaml.safe_load(COMPOSE.read_text())["services"].values() if "image" in service
    }
    images |= {
        rest.removeprefix("BASE=")
        for path in DOCKERFILES
        for name, rest in instructions(path)
        if name == "ARG" and "BASE=" in rest
    }
    loose = [
        image
        for image in images
        if not image.startswith("lyo-")
        and image not in BY_TAG
        and not re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", image)
    ]
    assert len(images) > 5 and loose == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_installs_what_is_locked_and_nothing_else(path: Path) -> None:
    installs = [rest for name, rest in instructions(path) if name == "RUN" and "pip install" in rest]
    locked = f"-r requirements/{path.name.partition('.')[0].replace('web', 'base')}.lock"
    assert "--require-hashes --no-deps" in installs[0] and installs[0].endswith(locked)
    assert all("torch==" in install for install in installs[1:])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_an_unprivileged_user_and_a_health_check(path: Path) -> None:
    found = dict(instructions(path))  # the last of each name, which is the one that counts
    assert found["FROM"] == "${BASE}"
    assert re.fullmatch(r"[1-9]\d*", found["USER"])
    assert found["HEALTHCHECK"] != "NONE"


def test_the_web_image_has_nothing_of_the_worker() -> None:
    taken = [rest for name, rest in instructions(DOCKERFILES[0]) if name in {"COPY", "ADD", "RUN"}]
    assert not [rest for rest in taken if re.search(r"worker|local|bench|dev\.|torch", rest) or rest.startswith(". ")]


def test_every_setting_that_docker_names_exists() -> None:
    known = named_settings(env.BASE_DIR / "lyo" / "env.py")
    for path in (COMPOSE, DOCKER / ".env.example", *DOCKERFILES):
        assert named_settings(path) - known == set(), path.name


def test_the_example_environment_has_all_that_compose_requires() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    given = set(re.findall(r"^(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert required and required <= given


def test_all_that_have_rankers_share_the_files() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for path, names in zip(DOCKERFILES, (["web"], ["worker-generate", "worker-train"]), strict=True):
        (folder,) = set(re.findall(r"LYO_FILES_DIR=(\S+)", path.read_text()))
        for name in names:
            assert f"files:{folder}" in services[name]["volumes"], name


def test_all_that_store_or_delete_adapters_share_them() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("web", "worker-default", "worker-generate", "worker-train"):
        assert "models:/models" in services[name]["volumes"], name


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_every_queue_has_a_worker_and_a_health_check(profile: str) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    image = dict(instructions(DOCKERFILES[1]))
    consumed, checked = set(), set()
    for service in services:
        if profile not in service.get("profiles", [profile]):
            continue
        by_worker_image = service["image"].startswith("lyo-worker")
        command = service.get("command") or (image["CMD"] if by_worker_image else "")
        check = str(service.get("healthcheck") or (image["HEALTHCHECK"] if by_worker_image else ""))
        consumed |= {queue for queues in re.findall(r"-Q (\S+)", command) for queue in queues.split(",")}
        checked |= set(re.findall(r"queue:(\w+)", check))
    assert consumed == checked == set(QUEUES)


def test_what_ends_itself_is_started_again() -> None:
    """Docker restarts what exits, not what is unhealthy; tini passes signals on, and buries who has no parent left."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {name for name, service in services.items() if service.get("restart") != "unless-stopped"} == {"migrate"}
    for path in DOCKERFILES:
        assert ("ENTRYPOINT", '["tini", "--"]') in instructions(path)
