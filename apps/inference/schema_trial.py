"""Compiles the JSON schema on standard input and writes what is wrong with it: `python -m apps.inference.schema_trial`.

It dies of what costs more than `CPU_S` of time or `MEMORY_MB` beyond what it begins with, and lets others go first.
"""

import os
import resource
import sys

import psutil
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

CPU_S = 1
NICE = 10
MEMORY_MB = 64


def main() -> None:
    os.nice(NICE)
    schema = sys.stdin.read()
    memory = psutil.Process().memory_info().vms + MEMORY_MB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sys.stdout.write(fault(schema))


def fault(schema: str) -> str:
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"lenient": False, "coerce_one_of": False})
    except ValueError as error:
        return str(error)
    # A vocabulary of bytes is as good as the model's to tell whether a grammar works.
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    matcher.compute_bitmask()  # some faults show only here
    return matcher.get_error().removesuffix("\n<non-verbose/>")


if __name__ == "__main__":
    main()
