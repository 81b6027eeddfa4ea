"""A Postgres connection that waits for its server no longer than it is told to."""

from typing import Any

import psycopg
from psycopg.abc import PQGen

ALIVE_S = 2.0  # for the answer to "are you there?"


class PatientConnection(psycopg.Connection[Any]):
    """Gives up a query, and itself, `patience_s` after it was sent; None waits for ever.

    `statement_timeout` ends a query that takes too long, but the server must be awake to do it: one that is frozen
    never does, and its kernel goes on to acknowledge keepalives.
    """

    patience_s: float | None = None

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        patience = self.patience_s if timeout is None else timeout
        try:
            return super().wait(gen, interval=interval, timeout=patience)
        except psycopg.OperationalError:
            if timeout is None and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()  # what it would still answer belongs to nobody
            raise

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """What the pool asks before it lends a connection, and nobody else."""
        patience, self.patience_s = self.patience_s, ALIVE_S
        try:
            return super().execute(*args, **kwargs)
        finally:
            self.patience_s = patience


def patient(seconds: float) -> type[PatientConnection]:
    """The class of connections that have this patience; 0 is without end."""
    return type("PatientConnection", (PatientConnection,), {"patience_s": seconds or None})
