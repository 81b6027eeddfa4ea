"""Whom somebody has erased, kept where a restored database cannot forget it: in LYO_ERASURES_FILE.

A line is the hash of an account's random id, and tells nothing to who does not have the account. The table `Erasure`
says the same as long as its database lasts; backups have both, joined.
"""

import os
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from lyo import env

LINE = re.compile(r"[0-9a-f]{64}")


def account_hash(user_id: UUID) -> str:
    return sha256(f"lyo account {user_id}".encode()).hexdigest()


def read(path: Path | None = None) -> set[str]:
    """All hashes of a ledger; none where there is no such file. A line that a crash has cut short is passed by."""
    path = path or env.ERASURES_FILE
    return set(filter(LINE.fullmatch, path.read_text().splitlines())) if path.exists() else set()


def add(hashes: Iterable[str]) -> None:
    """Append those that are not there yet, each at once and to the disk."""
    new = sorted(set(hashes) - read())
    if not new:
        return
    env.ERASURES_FILE.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(env.ERASURES_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, "".join(f"\n{line}\n" for line in new).encode())  # after a line that was cut short, too
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
