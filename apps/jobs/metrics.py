"""What is counted of jobs, beside what Postgres knows of them at any time."""

from prometheus_client import Counter, Gauge

INTERRUPTIONS = Counter(
    "lyo_jobs_interrupted", "Jobs taken from a worker that died, or whose lease was lost.", ["kind", "reason"]
)
RESIDENT = Gauge(
    "lyo_process_resident_bytes", "Memory of web, a worker or beat.", ["process"], multiprocess_mode="livesum"
)
