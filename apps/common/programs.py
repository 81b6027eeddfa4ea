"""Commands of manage.py that run a program of the torch side, which the web side must not import."""

import subprocess
import sys
from collections.abc import Sequence

from django.core.management.base import BaseCommand


class ProgramCommand(BaseCommand):
    """Hands all its arguments to `python -m program`."""

    program: str

    def run_from_argv(self, argv: Sequence[str]) -> None:
        command = [sys.executable, "-m", self.program, *self.given(), *argv[2:]]
        sys.exit(subprocess.run(command, check=False).returncode)  # noqa: S603 - a list, no shell

    def given(self) -> list[str]:
        """Arguments that come from the settings."""
        return []

    def print_help(self, prog_name: str, subcommand: str) -> None:
        self.run_from_argv([prog_name, subcommand, "--help"])
