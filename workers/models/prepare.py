"""Make a model ready before anything needs it: `python -m workers.models.prepare --model NAME --dir DIR`."""

import argparse
import sys
from pathlib import Path

from workers.models.folder import model_folder, tokenizer_folder
from workers.models.registry import resolve
from workers.protocols import Refused


def main(name: str, models_dir: Path, tokenizer_only: bool) -> None:
    """Fetch or convert the model `name`, with progress on standard output."""
    if tokenizer_only:
        folder = tokenizer_folder(resolve(name), models_dir, progress=lambda line: print(line, flush=True))
        print(f"{name}: the tokenizer is ready in {folder}", flush=True)
        return
    folder, digest = model_folder(resolve(name), models_dir, progress=lambda line: print(line, flush=True))
    print(f"{name}: ready in {folder}, weights sha256 {digest[:12]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name in workers/models/registry.py, a folder, or a hub id")
    parser.add_argument("--dir", required=True, type=Path, help="where converted models are kept")
    parser.add_argument("--tokenizer-only", action="store_true", help="as a worker needs it whose model is elsewhere")
    arguments = parser.parse_args()
    try:
        main(arguments.model, arguments.dir, arguments.tokenizer_only)
    except (Refused, OSError, ImportError) as error:
        sys.exit(f"cannot prepare the model {arguments.model}: {error}")
