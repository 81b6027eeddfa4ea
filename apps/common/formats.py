"""How the admin's pages write what people read."""

from datetime import timedelta


def duration(time: timedelta | None) -> str:
    """1.23 s, 45 s, 0:12:34, or - where there is none."""
    if time is None:
        return "-"
    seconds = time.total_seconds()
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))
