"""`make run`: checks what is needed, starts the whole stack, says where it is, and stops it on Ctrl-C.

What cannot go on ends with one line on stderr and exit code 1.
"""

import importlib.metadata
import re
import signal
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
READY = """
Lyo is ready.

  web     {web}
  docs    {web}/api/docs/
  admin   {web}/admin/
  flower  {flower}
  login   {username} / {password}

Ask it something:

  json='Content-Type: application/json'
  token=$(curl -s {web}/api/v1/auth/login -H "$json" \\
    -d '{{"username": "{username}", "password": "{password}"}}' | cut -d '"' -f 4)
  curl -N {web}/v1/chat/completions -H "$json" -H "Authorization: Bearer $token" \\
    -d '{{"model": "tutor", "stream": true, "messages": [{{"role": "user", "content": "What is light?"}}]}}'
"""


def main() -> int:
    """Run until Ctrl-C, SIGTERM or a lost terminal."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell that runs no jobs of its own has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    if missing := missing_packages():
        return fail(f"Missing packages: {', '.join(missing)}. Run `make install`.")

    from environs import EnvError  # only now: these need the packages

    from lyo.processes import SetupError

    try:
        from lyo import env
        from lyo.stack import Stack
    except EnvError as error:
        return fail(str(error))

    stack = Stack(env.HOME, host=env.HOST, port=env.PORT, flower_port=env.FLOWER_PORT)
    try:
        with stack:
            print(READY.format(web=stack.web, flower=stack.flower, **stack.admin), flush=True)
            stack.join()
        return fail("The supervisor has failed: see its lines above.")
    except SetupError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 0


def missing_packages() -> list[str]:
    """Names in `requirements/` that are not installed; tools for development are not needed here."""
    missing = []
    for file in (REQUIREMENTS / "base.txt", REQUIREMENTS / "worker.txt"):
        for name in re.findall(r"^([\w.-]+)(?:\[.*\])?==", file.read_text(), re.MULTILINE):
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
    return missing


def fail(line: str) -> int:
    print(f"lyo: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
