"""Every setting that Lyo takes from its environment: name, type, default, and why.

This is the only reader of `os.environ`, but for `lyo.stack` and `lyo.backup`, which hand it on to the
processes they start. Where no
server's URL is given, the address of the embedded one is taken from `LYO_HOME/local.json`, which `make run` and the
tests write (see `lyo.embedded`).
"""

import json
from pathlib import Path

from environs import Env, EnvError, validate

env = Env()
BASE_DIR = Path(__file__).resolve().parent.parent
FROM_0, FROM_1, A_PORT = validate.Range(min=0), validate.Range(min=1), validate.Range(min=0, max=65535)

HOME = (BASE_DIR / env.str("LYO_HOME", ".lyo")).resolve()  # all state of a local stack; delete it to start anew
LOCAL_FILE = HOME / "local.json"  # mode 0600: addresses, passwords and the secret key of a local stack


def local(key: str) -> str:
    """A value that a local stack made for itself, or "" where there is none yet."""
    return json.loads(LOCAL_FILE.read_text()).get(key, "") if LOCAL_FILE.exists() else ""


# --- servers ---
DATABASE_URL = env.str("LYO_DATABASE_URL", "") or local("database_url")  # postgres://user:password@host:5432/name
BROKER_URL = env.str("LYO_BROKER_URL", "") or local("broker_url")  # redis://…: needs noeviction and an append-only file
CACHE_URL = env.str("LYO_CACHE_URL", "") or local("cache_url")  # redis://…: may evict; a server of its own
DATABASE_POOL = env.int(
    "LYO_DATABASE_POOL", 24, validate=FROM_1
)  # Postgres connections of one process; open streams hold none
ROLE = env.str(
    "LYO_ROLE", "web", validate=validate.OneOf(["web", "worker", "command"])
)  # which process this is, as manage.py and Celery's say of themselves: how long its queries may take depends on it
WEB_QUERY_S = env.float("LYO_WEB_QUERY_S", 15.0, validate=FROM_1)  # Postgres ends a request's query after it
WORKER_QUERY_S = env.float("LYO_WORKER_QUERY_S", 300.0, validate=FROM_1)  # a worker's; manage.py's may take any time
STATIC_ROOT = env.str("LYO_STATIC_ROOT", str(HOME / "static"))  # where collectstatic puts the admin's and docs' files

# --- web ---
HOST = env.str("LYO_HOST", "127.0.0.1")  # address that `make run` binds
PORT = env.int("LYO_PORT", 8000, validate=A_PORT)  # web; Flower takes LYO_FLOWER_PORT
FLOWER_PORT = env.int("LYO_FLOWER_PORT", 5555, validate=A_PORT)  # always on loopback: its /metrics knows no password
SECRET_KEY = env.str("LYO_SECRET_KEY", "") or local("secret_key")  # signs sessions; production must set it
DEBUG = env.bool("LYO_DEBUG", False)  # tracebacks in the browser; never in production
ALLOWED_HOSTS = env.list("LYO_ALLOWED_HOSTS", ["127.0.0.1", "localhost", "[::1]"])  # Host headers that are answered
HTTPS = env.bool("LYO_HTTPS", False)  # behind TLS: secure cookies, HSTS, redirect, X-Forwarded-Proto is trusted
CORS_ORIGINS: list[str] = env.list(
    "LYO_CORS_ORIGINS", []
)  # sites whose pages may call the API from a browser, such as https://app.example; * is any; none: no CORS
TRUSTED_PROXIES = env.int(
    "LYO_TRUSTED_PROXIES", 0, validate=FROM_0
)  # how many proxies append to X-Forwarded-For; throttles see past them
PROXY_NETWORKS = env.list(
    "LYO_PROXY_NETWORKS", ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
)  # from where proxies connect: who comes from elsewhere is whom the connection says
MAX_CONNECTIONS = env.int("LYO_MAX_CONNECTIONS", 4096, validate=FROM_1)  # open at a time, of each web process
CONNECTIONS_PER_ADDRESS = env.int(
    "LYO_CONNECTIONS_PER_ADDRESS", 512, validate=FROM_1
)  # of those; whole schools share an address. Behind trusted proxies it is theirs to count
TOKEN_DAYS = env.int("LYO_TOKEN_DAYS", 30)  # life of a bearer token
SESSION_DAYS = env.int("LYO_SESSION_DAYS", 14, validate=FROM_1)  # life of a login to the admin
MAX_BODY_MB = env.int("LYO_MAX_BODY_MB", 2)  # a larger request body is refused with 413, but for files of known users
MAX_FILE_MB = env.int("LYO_MAX_FILE_MB", 32)  # of an uploaded training file; it is read while the client waits
FILES_DIR = Path(env.str("LYO_FILES_DIR", str(HOME / "files")))  # where uploaded files are kept
ERASURES_FILE = Path(
    env.str("LYO_ERASURES_FILE", str(FILES_DIR / "erasures"))
)  # hashes of erased accounts, which are erased again when an older backup is restored; web writes it
RUNS_DIR = Path(
    env.str("LYO_RUNS_DIR", str(HOME / "runs"))
)  # checkpoints of training runs under way; shared, so that another worker can go on

# --- accounts ---
CONFIRM_EMAIL = env.bool("LYO_CONFIRM_EMAIL", False)  # who registers may only read until the address is confirmed
CONFIRMATION_HOURS = env.int("LYO_CONFIRMATION_HOURS", 48, validate=FROM_1)  # so long the token in the mail is good
UNCONFIRMED_DAYS = env.int("LYO_UNCONFIRMED_DAYS", 7, validate=FROM_1)  # after which such an account is erased
CONFIRM_URL = env.str("LYO_CONFIRM_URL", "")  # of a page that posts the token, with {token} in it; "": the mail has it
EMAIL_URL = env.str(
    "LYO_EMAIL_URL", "", validate=validate.Regexp(r"((smtp|smtps|smtp\+tls)://.+)?\Z")
)  # smtp+tls://user:password@host:587; smtps:// where TLS is from the first byte on
EMAIL_FROM = env.str("LYO_EMAIL_FROM", "Lyo <lyo@localhost>")
SIGNAL_ACCOUNT_DAYS = env.int("LYO_SIGNAL_ACCOUNT_DAYS", 7, validate=FROM_0)  # that an account is old, before it counts
SIGNAL_ACCOUNT_EVENTS = env.int(
    "LYO_SIGNAL_ACCOUNT_EVENTS", 10, validate=FROM_1
)  # that it has, before it counts among the learners of whom a trend or a suggestion takes several

# --- logs ---
LOG_FORMAT = env.str(
    "LYO_LOG_FORMAT", "json", validate=validate.OneOf(["json", "console"])
)  # json for machines, console for eyes
LOG_LEVEL = env.str("LYO_LOG_LEVEL", "INFO", validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"]))

# --- limits: past them the answer is 429 with Retry-After ---
REGISTRATIONS_PER_MINUTE = env.int("LYO_REGISTRATIONS_PER_MINUTE", 60)  # per address
LOGIN_FAILURES_PER_MINUTE = env.int("LYO_LOGIN_FAILURES_PER_MINUTE", 10)  # per address and user name
LOGIN_FAILURES_OF_ADDRESS = env.int("LYO_LOGIN_FAILURES_OF_ADDRESS", 100)  # a minute, whatever the names
LOGIN_FAILURES_OF_ACCOUNT = env.int(
    "LYO_LOGIN_FAILURES_OF_ACCOUNT", 120, validate=validate.Range(min=10)
)  # an hour, from all addresses where its owner has not been lately; one of those gets a tenth
CONFIRMATIONS_PER_HOUR = env.int("LYO_CONFIRMATIONS_PER_HOUR", 3)  # mails to one address
GENERATIONS_PER_MINUTE = env.int("LYO_GENERATIONS_PER_MINUTE", 120)  # per user
REQUESTS_PER_MINUTE = env.int("LYO_REQUESTS_PER_MINUTE", 1200)  # per user, everything but generations
ANONYMOUS_PER_MINUTE = env.int("LYO_ANONYMOUS_PER_MINUTE", 600)  # per address, of all who are not logged in
GENERATIONS_AT_ONCE = env.int("LYO_GENERATIONS_AT_ONCE", 8)  # per user, queued or running
STREAMS_PER_USER = env.int(
    "LYO_STREAMS_PER_USER", 4 * GENERATIONS_AT_ONCE, validate=FROM_1
)  # answers that are followed or awaited: each may be, in several windows
QUEUE_LIMIT = env.int("LYO_QUEUE_LIMIT", 256)  # jobs that may wait in one queue

# --- jobs ---
LEASE_S = env.float("LYO_LEASE_S", 5.0)  # a worker silent for so long has lost its jobs
HEARTBEAT_S = env.float("LYO_HEARTBEAT_S", 1.5)  # well below the lease, so that one late beat costs nothing
STALL_S = env.float(
    "LYO_STALL_S", 60.0, validate=validate.Range(min=1)
)  # a worker whose interpreter, engine or consumption stands still for so long is ended and started again; so is beat
JOB_ATTEMPTS = env.int("LYO_JOB_ATTEMPTS", 5, validate=FROM_1)  # a job whose worker dies so often is given up as a bug
LEASE_LOSSES = env.int(
    "LYO_LEASE_LOSSES", 20, validate=FROM_1
)  # so often a job is taken from workers that fall silent, which may be nobody's fault; then it is given up, too
JOB_DEADLINE_S = env.int("LYO_JOB_DEADLINE_S", 600)  # from acceptance to end, for interactive work
JOB_RETENTION_DAYS = env.int("LYO_JOB_RETENTION_DAYS", 30)  # ended jobs are deleted after this
STREAM_TTL_S = env.int("LYO_STREAM_TTL_S", 900)  # a token stream can be replayed so long; later the stored text serves
READER_GRACE_S = env.float("LYO_READER_GRACE_S", 10.0)  # an answer that nobody reads is cancelled after this
KEEP_ALIVE_S = env.float("LYO_KEEP_ALIVE_S", 10.0)  # a comment on a silent stream, so that proxies keep it open

# --- the model and its worker ---
MODEL = env.str("LYO_MODEL", "gemma-3-270m")  # a name in workers/models/registry.py, a folder, or a hub id
MODELS_DIR = Path(env.str("LYO_MODELS_DIR", str(BASE_DIR / ".lyo" / "models")))  # converted weights; shared by stacks
ENGINE = env.str("LYO_ENGINE", "local", validate=validate.OneOf(["local", "remote"]))  # where it runs: here, or there
DEVICE = env.str("LYO_DEVICE", "auto", validate=validate.OneOf(["auto", "cpu", "cuda", "mps"]))
DTYPE = env.str(
    "LYO_DTYPE", "auto", validate=validate.OneOf(["auto", "bfloat16", "float32", "int8"])
)  # auto: the fastest that the processor has; float32 is exact, bfloat16 is fast, int8 (of CPUs) is faster and as good
CONTEXT_TOKENS = env.int("LYO_CONTEXT_TOKENS", 4096, validate=validate.Range(min=2))  # prompt and answer together
LONGEST_TOKEN = env.int(
    "LYO_LONGEST_TOKEN", 48, validate=FROM_1
)  # bytes of UTF-8 that a token of the model stands for at most, by which the web tells what can never fit
KV_CACHE_MB = env.int("LYO_KV_CACHE_MB", 2048)  # bounds the tokens in flight; a request that can never fit is refused
KV_IDLE_S = env.float("LYO_KV_IDLE_S", 600.0, validate=FROM_0)  # without a request, after which it is given back
MAX_BATCH = env.int(
    "LYO_MAX_BATCH", 32, validate=FROM_1
)  # requests that are generated side by side, here or by the remote server
GENERATE_THREADS = env.int(
    "LYO_GENERATE_THREADS", MAX_BATCH + 8, validate=FROM_1
)  # answers a worker has in hand; the few past MAX_BATCH join at once when one ends, the others wait for their turn
DEFAULT_MAX_TOKENS = env.int(
    "LYO_DEFAULT_MAX_TOKENS", 2048, validate=FROM_1
)  # of an answer of /v1 that does not say how long it may be; where the context has less room, that
ADAPTERS_DIR = Path(env.str("LYO_ADAPTERS_DIR", str(BASE_DIR / ".lyo" / "adapters")))  # PEFT folders, named by digest
ADAPTERS_STORAGE = env.str(
    "LYO_ADAPTERS_STORAGE", "", validate=validate.Regexp(r"(s3://[^/]+(/.*)?)?\Z")
)  # s3://bucket/prefix keeps them there, and the folder is what a worker has fetched; AWS_* say how S3 is reached
MAX_ADAPTER_MB = env.int("LYO_MAX_ADAPTER_MB", 256)  # of one that is uploaded, packed and unpacked
MAX_ADAPTERS = env.int("LYO_MAX_ADAPTERS", 8)  # in memory at a time; the least recently used makes room
ADAPTERS_MB = env.int("LYO_ADAPTERS_MB", 512)  # what they may take there; one that never fits is refused
MAX_LORA_RANK = env.int("LYO_MAX_LORA_RANK", 64)  # the highest that is loaded: every rank costs all rows a little
TORCH_THREADS = env.int("LYO_TORCH_THREADS", 0)  # 0: one per core

# --- canaries: an adapter on trial is rolled back where it is found worse than the live one ---
CANARY_ALPHA = env.float("LYO_CANARY_ALPHA", 0.05)  # the chance that one is which is not, however long its trial
CANARY_ERROR_MARGIN = env.float("LYO_CANARY_ERROR_MARGIN", 0.05)  # by how much more of its answers may fail
CANARY_THUMB_MARGIN = env.float("LYO_CANARY_THUMB_MARGIN", 0.1)  # by how much more of its thumbs may be down

# --- the feed ---
FORESIGHT_S = env.float(
    "LYO_FORESIGHT_S", 900.0, validate=FROM_0
)  # of each night, in which Gemma says how much active learners will take to the best of their feeds; 0: never

# --- the model on another server (LYO_ENGINE=remote): vLLM, llama.cpp, or any with OpenAI's /v1/completions ---
REMOTE_URL = env.str("LYO_REMOTE_URL", "")  # its API's root, such as http://vllm:8000/v1; LYO_MODEL is what it serves
REMOTE_API_KEY = env.str("LYO_REMOTE_API_KEY", "").strip()  # sent as the bearer token
REMOTE_MODEL = env.str("LYO_REMOTE_MODEL", "")  # the server's name for it; "": the first that it lists
REMOTE_ADAPTERS_DIR = Path(env.str("LYO_REMOTE_ADAPTERS_DIR", str(ADAPTERS_DIR)))  # where the server has that folder
REMOTE_FIRST_TOKEN_S = env.float("LYO_REMOTE_FIRST_TOKEN_S", 120.0)  # its queue included; then it is asked anew
REMOTE_NEXT_TOKEN_S = env.float("LYO_REMOTE_NEXT_TOKEN_S", 30.0)  # silence within an answer that ends the attempt

# --- outside models to compare with: any server with OpenAI's /v1/chat/completions; without a URL there is none ---
COMPARE_URL = env.str(
    "LYO_COMPARE_URL", ""
)  # its API's root, such as https://api.openai.com/v1; prompts are sent there
COMPARE_API_KEY = env.str("LYO_COMPARE_API_KEY", "").strip()  # sent as the bearer token
COMPARE_MODEL = env.str("LYO_COMPARE_MODEL", "")  # the server's name for the model
JUDGE_URL = env.str("LYO_JUDGE_URL", "")  # the model that says which of two replies is better: better not a contestant
JUDGE_API_KEY = env.str("LYO_JUDGE_API_KEY", "").strip()
JUDGE_MODEL = env.str("LYO_JUDGE_MODEL", "")
OUTSIDE_TIMEOUT_S = env.float("LYO_OUTSIDE_TIMEOUT_S", 120.0)  # of one reply of theirs

# --- metrics ---
METRICS_PORT = env.int(
    "LYO_METRICS_PORT", 0, validate=A_PORT
)  # a worker's own /metrics; 0 where the web process can read its files
METRICS_DIR = env.str(
    "PROMETHEUS_MULTIPROC_DIR", ""
)  # shared by the processes of one machine; prometheus_client reads it

# --- what is kept how long; beat deletes it in small pieces ---
EVENT_DAYS = env.int(
    "LYO_EVENT_DAYS", 730, validate=validate.Range(min=180)
)  # what learners did; rankers read 180 days
EVENT_KEY_DAYS = env.int("LYO_EVENT_KEY_DAYS", 30, validate=FROM_1)  # clients' names for events, by which repeats show
QUERY_DAYS = env.int("LYO_QUERY_DAYS", 90, validate=FROM_1)  # searches
RANKING_DAYS = env.int("LYO_RANKING_DAYS", 90, validate=FROM_1)  # feeds of those who no longer come
IDEMPOTENCY_DAYS = env.int("LYO_IDEMPOTENCY_DAYS", 1, validate=FROM_1)  # after its end a job forgets its client's key
LARGE_RESULT_DAYS = env.int("LYO_LARGE_RESULT_DAYS", 3, validate=FROM_1)  # vectors, probabilities: what is large goes
LARGE_RESULT_KB = env.int("LYO_LARGE_RESULT_KB", 64, validate=FROM_1)  # as it is stored

# --- what does not go together ---
if CONFIRM_EMAIL and not EMAIL_URL:
    raise EnvError("LYO_CONFIRM_EMAIL needs LYO_EMAIL_URL, such as smtp+tls://user:password@mail.example.org:587")
if CONFIRM_URL and "{token}" not in CONFIRM_URL:
    raise EnvError("LYO_CONFIRM_URL needs {token} in it, such as https://lyo.example.org/confirm#{token}")
if LARGE_RESULT_DAYS < IDEMPOTENCY_DAYS:
    raise EnvError("LYO_LARGE_RESULT_DAYS must be at least LYO_IDEMPOTENCY_DAYS: a repeat gets the whole result")
if ENGINE == "remote" and not REMOTE_URL.startswith(("http://", "https://")):
    raise EnvError("LYO_ENGINE=remote needs LYO_REMOTE_URL, such as http://vllm:8000/v1")
if HEARTBEAT_S > LEASE_S / 2:
    raise EnvError("LYO_HEARTBEAT_S must be at most half of LYO_LEASE_S, for one late beat must cost nothing")
