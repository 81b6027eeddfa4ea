"""For containers: `python -m lyo.healthcheck queue:generate` exits with 1 unless the named checks of /readyz pass."""

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyo.settings")
django.setup()

from lyo.ops import readiness  # noqa: E402 - models need the setup


def main(names: list[str]) -> int:
    checks = readiness()
    for name in names:
        print(f"{name}: {checks[name].detail}")
    return int(not all(checks[name].ok for name in names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
