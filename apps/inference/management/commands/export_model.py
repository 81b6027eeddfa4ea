import subprocess
import sys
from collections.abc import Sequence

from django.core.management.base import BaseCommand

from lyo import env


class Command(BaseCommand):
    """Runs the torch side's own program, which takes all the arguments, with this project's settings."""

    help = "Write the model, with an adapter merged into it, as a Hugging Face folder or as a GGUF file."

    def run_from_argv(self, argv: Sequence[str]) -> None:
        program = [sys.executable, "-m", "workers.models.export", "--model", env.MODEL]
        places = {"models": env.MODELS_DIR, "adapters": env.ADAPTERS_DIR, "exports": env.HOME / "exports"}
        program += [f"--{kind}-dir={folder}" for kind, folder in places.items()]
        sys.exit(subprocess.run([*program, *argv[2:]], check=False).returncode)  # noqa: S603 - a list, no shell

    def print_help(self, prog_name: str, subcommand: str) -> None:
        self.run_from_argv([prog_name, subcommand, "--help"])
