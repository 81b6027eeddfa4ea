import subprocess
import sys
from collections.abc import Sequence

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Runs the torch side's own program, which takes all the arguments."""

    help = "Keep and enter the adapter of a PEFT folder, unless it was made for another model."

    def run_from_argv(self, argv: Sequence[str]) -> None:
        program = [sys.executable, "-m", "workers.tasks", *argv[2:]]
        sys.exit(subprocess.run(program, check=False).returncode)  # noqa: S603 - a list, no shell

    def print_help(self, prog_name: str, subcommand: str) -> None:
        self.run_from_argv([prog_name, subcommand, "--help"])
