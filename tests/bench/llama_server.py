"""llama.cpp's server, as the wheel brings it: compiled for AVX2, not for AVX-512 or AMX. See `peers.process`."""

import json
import sys
from typing import Any

import xllamacpp

SLOT_TOKENS = 1024  # of prompt and answer together; the cache is divided evenly


def main() -> None:
    gguf, threads, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params: Any = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx = slots, slots * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 1  # errors
    server = xllamacpp.Server(params)
    print(json.dumps(server.listening_address), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
