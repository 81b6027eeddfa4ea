"""Django's settings, from the values of `lyo.env`; the same file serves development, tests and production."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

import dj_database_url
from celery.schedules import crontab
from corsheaders.defaults import default_headers
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy

from apps.common.database import patient
from apps.common.logs import logging_config
from apps.jobs.pools import THREADS
from lyo import env

if not (env.DATABASE_URL and env.BROKER_URL and env.CACHE_URL and env.SECRET_KEY):
    raise ImproperlyConfigured(
        "No servers are known. Run `make run` once (it starts its own under .lyo/), or set LYO_DATABASE_URL, "
        "LYO_BROKER_URL, LYO_CACHE_URL and LYO_SECRET_KEY."
    )

BASE_DIR = env.BASE_DIR
SECRET_KEY = env.SECRET_KEY
DEBUG = env.DEBUG
ALLOWED_HOSTS = env.ALLOWED_HOSTS
ROOT_URLCONF = "lyo.urls"
ASGI_APPLICATION = "lyo.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.import_export",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "corsheaders",
    "drf_standardized_errors",
    "django_celery_beat",
    "import_export",
    "django_structlog",
    "apps.common",
    "apps.users",
    "apps.jobs",
    "apps.inference",
    "apps.content",
    "apps.feed",
    "apps.search",
    "apps.tutor",
    "apps.training",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "apps.common.middleware.RequestLog",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
    "apps.common.middleware.anonymous_pages",
    "apps.common.middleware.deferred_response",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "lyo" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- servers ---
# Seconds after which Postgres ends a query, a wait for a lock, and a transaction in which nothing happens; 0: never.
QUERY_S, LOCK_S, IDLE_S = {
    "web": (env.WEB_QUERY_S, min(10.0, env.WEB_QUERY_S), 60.0),
    "worker": (env.WORKER_QUERY_S, min(60.0, env.WORKER_QUERY_S), 600.0),
    "command": (0.0, 60.0, 0.0),  # a migration of large tables; but others wait behind it while it waits for a lock
}[env.ROLE]
GRACE_S = 3.0  # for Postgres to end it, before this side gives up
# Under ASGI every request runs on a thread of its own, so connections are pooled instead of kept by threads.
DATABASES = {"default": dj_database_url.parse(env.DATABASE_URL, conn_max_age=0, conn_health_checks=True)}
DATABASES["default"].setdefault("OPTIONS", {}).update(
    connect_timeout=3,
    # Where packets vanish, a silent connection is lost after 20 s, one with something unacknowledged after 10.
    keepalives_idle=10,
    keepalives_interval=5,
    keepalives_count=2,
    tcp_user_timeout=10_000,
    options=f"-c statement_timeout={QUERY_S:g}s -c lock_timeout={LOCK_S:g}s"
    f" -c idle_in_transaction_session_timeout={IDLE_S:g}s",
    # A killed server's socket may still take connections that nobody answers: enough threads to wait for all at once.
    pool={
        "min_size": 1,
        "max_size": env.DATABASE_POOL,
        "timeout": 3,
        "reconnect_timeout": 2,
        "num_workers": 8,
        "connection_class": patient(QUERY_S and QUERY_S + GRACE_S),
    },
)
BROKER_URL = env.BROKER_URL
CACHE_URL = env.CACHE_URL
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": env.CACHE_URL,
        "OPTIONS": {"socket_connect_timeout": 1, "socket_timeout": 2},
    },
    "process": {  # what every request reads
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "OPTIONS": {"MAX_ENTRIES": 20_000},
    },
}

STATIC_URL = "/static/"
STATIC_ROOT = env.STATIC_ROOT
MEDIA_ROOT = env.FILES_DIR
_bucket = urlsplit(env.ADAPTERS_STORAGE)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "adapters": {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {"bucket_name": _bucket.netloc, "location": _bucket.path.strip("/")},
    }
    if env.ADAPTERS_STORAGE
    else {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": env.ADAPTERS_DIR}},
}

# --- people ---
AUTH_USER_MODEL = "users.User"
AUTHENTICATION_BACKENDS = ["apps.users.backends.RoleBackend"]
KNOX_TOKEN_MODEL = "users.Token"  # noqa: S105 - the name of a model
REST_KNOX = {
    "AUTH_HEADER_PREFIX": "Bearer",
    "TOKEN_TTL": timedelta(days=env.TOKEN_DAYS),
    "TOKEN_MODEL": KNOX_TOKEN_MODEL,
}
MIGRATION_MODULES = {"knox": None}  # its own token table, which ours replaces, would stand in the way of a flush
PASSWORD_HASHERS = ["apps.users.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"  # which leads staff to the admin, and others to the docs
TRUSTED_PROXIES = env.TRUSTED_PROXIES
PROXY_NETWORKS = [ip_network(network) for network in env.PROXY_NETWORKS]
SESSION_ENGINE = "apps.users.sessions"
SESSION_COOKIE_AGE = env.SESSION_DAYS * 86_400

# --- mail: only confirmations of addresses, where LYO_CONFIRM_EMAIL asks for them ---
_mail = urlsplit(env.EMAIL_URL)
EMAIL_HOST, EMAIL_PORT = (
    _mail.hostname or "localhost",
    _mail.port or {"smtps": 465, "smtp+tls": 587}.get(_mail.scheme, 25),
)
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_mail.username or ""), unquote(_mail.password or "")
EMAIL_USE_TLS, EMAIL_USE_SSL = _mail.scheme == "smtp+tls", _mail.scheme == "smtps"
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.EMAIL_FROM

# --- transport security ---
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = env.HTTPS
SECURE_REDIRECT_EXEMPT = [r"^(livez|readyz|metrics)$"]  # probes come past the proxy
SECURE_HSTS_SECONDS = 31_536_000 if env.HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.HTTPS else None
X_FRAME_OPTIONS = "DENY"

# --- browsers' pages of other sites ---
CORS_URLS_REGEX = r"^/(api/)?v1/"
CORS_ALLOW_ALL_ORIGINS = "*" in env.CORS_ORIGINS
CORS_ALLOWED_ORIGINS = [origin for origin in env.CORS_ORIGINS if origin != "*"]
CORS_ALLOW_HEADERS = [
    *default_headers,
    "idempotency-key",
    "last-event-id",
    # what OpenAI's client sends
    "openai-beta",
    "openai-organization",
    "openai-project",
    *(
        f"x-stainless-{name}"
        for name in (
            "arch",
            "async",
            "custom-poll-interval",
            "helper-method",
            "lang",
            "os",
            "package-version",
            "poll-helper",
            "retry-count",
            "runtime",
            "runtime-version",
            "timeout",
        )
    ),
]
CORS_EXPOSE_HEADERS = ["Content-Disposition", "Retry-After", "WWW-Authenticate", "X-Lyo-Feed"]
DATA_UPLOAD_MAX_MEMORY_SIZE = env.MAX_BODY_MB * 2**20

# --- the API ---
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.users.auth.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["apps.common.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "apps.common.negotiation.ContentNegotiation",
    "DEFAULT_THROTTLE_CLASSES": ["apps.common.throttles.RequestThrottle"],
    "DEFAULT_PAGINATION_CLASS": "apps.common.pagination.CursorPagination",
    "DEFAULT_SCHEMA_CLASS": "apps.common.schema.AutoSchema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
    "URL_FORMAT_OVERRIDE": None,  # `format` is a filter of ours; all is JSON
}
_STATUSES = ("400", "401", "403", "404", "405", "413", "415", "429", "500", "503")
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "apps.common.errors.ExceptionHandler",
    "ALLOWED_ERROR_STATUS_CODES": _STATUSES,
    "ERROR_SCHEMAS": dict.fromkeys(_STATUSES, "apps.common.serializers.RefusalSerializer"),
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Lyo",
    "DESCRIPTION": "Self-hosted backend for AI education.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/(api/)?v1",
    "ENUM_NAME_OVERRIDES": {
        "AdapterStateEnum": "apps.inference.selectors.AdapterState.ALL",
        "ContentStatusEnum": "apps.content.models.Status",
        "ExampleStateEnum": "apps.training.models.data.State",
        "JobStateEnum": "apps.jobs.models.State",
        "RunStatusEnum": "apps.training.models.RunState",
    },
}

# --- Celery: every name here is an option that Celery knows (a test asserts it) ---
CELERY_BROKER_URL = env.BROKER_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker outlives any outage of its broker
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # Without these a publisher hangs on a frozen Redis.
    "socket_timeout": 3,
    "socket_connect_timeout": 2,
    "health_check_interval": 10,
    "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2},
    "queue_order_strategy": "apps.jobs.pools:QueuesWithRoom",
    "polling_interval": 0.1,  # seconds: so soon a queue is asked again once its pool has room
}
CELERY_WORKER_CONCURRENCY = THREADS
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2}
CELERY_TASK_IGNORE_RESULT = True  # results live in job rows
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_DISABLE_PREFETCH = True  # a killed worker strands no messages that it had not begun
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_SEND_TASK_EVENTS = True  # Flower lives on them
CELERY_TIMEZONE = TIME_ZONE
CELERY_BEAT_SCHEDULER = "apps.jobs.beat:LeasedScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CELERY_BEAT_SCHEDULE = {
    # A message that waited long says nothing new: it expires. Not too soon, for clocks of hosts differ.
    "jobs.sweep": {"task": "jobs.sweep", "schedule": 1.0, "options": {"queue": "sweep", "expires": 10}},
    "jobs.delete_expired": {"task": "jobs.delete_expired", "schedule": 3600.0, "options": {"queue": "default"}},
    "inference.watch_canaries": {
        "task": "inference.watch_canaries",
        "schedule": 3.0,
        "options": {"queue": "default", "expires": 10},
    },
    "inference.delete_expired": {
        "task": "inference.delete_expired",
        "schedule": 3600.0,
        "options": {"queue": "default"},
    },
    "content.enrich": {"task": "content.enrich", "schedule": 5.0, "options": {"queue": "default", "expires": 10}},
    "feed.score": {"task": "feed.score", "schedule": 2.0, "options": {"queue": "default", "expires": 10}},
    "feed.count_trends": {
        "task": "feed.count_trends",
        "schedule": 120.0,
        "options": {"queue": "default", "expires": 120},
    },
    "feed.learn": {"task": "feed.learn", "schedule": 3600.0, "options": {"queue": "default", "expires": 60}},
    "feed.foresee": {
        "task": "feed.foresee",
        "schedule": crontab(hour=3, minute=0),
        "options": {"queue": "default", "expires": 3600},
    },
    "feed.tidy": {"task": "feed.tidy", "schedule": 86_400.0, "options": {"queue": "default"}},
    "search.count_words": {
        "task": "search.count_words",
        "schedule": 10.0,
        "options": {"queue": "default", "expires": 10},
    },
    "search.tidy": {"task": "search.tidy", "schedule": 86_400.0, "options": {"queue": "default"}},
    "users.tidy": {"task": "users.tidy", "schedule": 3600.0, "options": {"queue": "default"}},
    "training.collect": {"task": "training.collect", "schedule": 60.0, "options": {"queue": "default", "expires": 60}},
    "training.renew": {"task": "training.renew", "schedule": 10.0, "options": {"queue": "default", "expires": 10}},
    **{
        f"jobs.canary.{queue}": {
            "task": "jobs.canary",
            "schedule": 5.0,
            "args": [queue],
            "options": {"queue": queue, "expires": 10},
        }
        for queue in ("default", "embed", "evaluate", "generate", "score", "sweep", "train", "understand")
    },
}

# --- logs ---
LOGGING = logging_config(env.LOG_FORMAT, env.LOG_LEVEL)

# --- the staff's desk ---


def _link(title: str, icon: str, view: str, permission: str) -> dict[str, Any]:
    """A sidebar link to a view of the admin, for those who may see it."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{view}"),
        "permission": lambda request: request.user.has_perm(permission),
    }


def _list(title: str, icon: str, model: str) -> dict[str, Any]:
    """A sidebar link to the list of `app.model`."""
    app, name = model.split(".")
    return _link(title, icon, f"{app}_{name}_changelist", f"{app}.view_{name}")


IMPORT_EXPORT_EXPORT_PERMISSION_CODE = "view"
UNFOLD = {
    "SITE_TITLE": "Lyo",
    "SITE_HEADER": "Lyo",
    "SITE_SYMBOL": "school",
    "SITE_URL": "/api/docs/",
    "DASHBOARD_CALLBACK": "lyo.dashboard.dashboard",
    "SIDEBAR": {
        "navigation": [
            {
                "title": "Work",
                "items": [
                    {"title": "Overview", "icon": "monitoring", "link": reverse_lazy("admin:index")},
                    _list("Jobs", "work", "jobs.job"),
                    _link("Engines", "memory", "engines", "jobs.view_job"),
                    _list("Periodic tasks", "schedule", "django_celery_beat.periodictask"),
                ],
            },
            {
                "title": "Tutor",
                "items": [
                    _list("Conversations", "forum", "tutor.conversation"),
                    _list("Messages", "chat", "tutor.message"),
                ],
            },
            {
                "title": "Content",
                "items": [
                    _list("Items", "article", "content.item"),
                    _list("Topics", "account_tree", "content.topic"),
                    _list("Courses", "menu_book", "content.course"),
                ],
            },
            {
                "title": "Feed and search",
                "items": [
                    _list("Weights", "tune", "feed.weights"),
                    _list("Rankers", "leaderboard", "feed.ranker"),
                    _list("Readers", "dynamic_feed", "feed.reader"),
                    _list("Queries", "search", "search.query"),
                ],
            },
            {
                "title": "Training",
                "items": [
                    _list("Examples", "rate_review", "training.example"),
                    _list("Data set versions", "dataset", "training.datasetversion"),
                    _list("Runs", "model_training", "training.run"),
                    _list("Schedules", "event_repeat", "training.schedule"),
                    _list("Files", "upload_file", "training.file"),
                    _list("Evaluation sets", "quiz", "training.evaluationset"),
                    _list("Adapters", "extension", "inference.adapter"),
                    _list("Routes", "alt_route", "inference.route"),
                    _list("Evaluations", "balance", "training.evaluation"),
                    _list("Gates", "gate", "training.gate"),
                    _list("Comparisons", "compare_arrows", "training.comparison"),
                ],
            },
            {
                "title": "People",
                "items": [_list("Users", "person", "users.user"), _list("Groups", "group", "auth.group")],
            },
            {
                "title": "Machine",
                "items": [
                    {"title": "API documentation", "icon": "api", "link": "/api/docs/"},
                    {"title": "Readiness", "icon": "favorite", "link": "/readyz"},
                ],
            },
        ]
    },
}
