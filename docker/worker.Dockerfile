# The image of the worker that owns the model. Build it from the repository's root:
#   docker build -f docker/worker.Dockerfile -t lyo-worker .
# On Linux, PyPI's torch is the CUDA build. For another one, such as the much smaller CPU build, name PyTorch's index of
# it: --build-arg PIP_EXTRA_INDEX_URL=... (pip prefers its "2.13.0+cpu" to PyPI's "2.13.0").
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3
FROM ${BASE}

# Mount volumes on /models and, where runs train, on /runs: what is fetched or converted there then outlives the container.
# /files is shared with web: rankers are there.
ENV PYTHONUNBUFFERED=1 LYO_MODELS_DIR=/models LYO_RUNS_DIR=/runs LYO_FILES_DIR=/files HF_HOME=/models/hub
WORKDIR /app
RUN useradd --uid 10001 --no-create-home lyo && install -d -o lyo -g lyo /models /runs /files
# The OpenMP runtime of lightgbm and implicit: not every build of torch brings it under the name that they look for.
# tini: see web.Dockerfile.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 tini && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["tini", "--"]
COPY requirements/worker.lock requirements/worker.txt requirements/
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/worker.lock
# Last, and not locked: its builds differ by machine. All that it shares with others is there.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/worker.txt)"
COPY manage.py .
COPY lyo lyo
COPY apps apps
COPY workers workers

USER 10001
# Consumption, not life: a worker may be alive, and answer pings, and take nothing from its queues.
HEALTHCHECK --interval=30s --timeout=20s --start-period=10m --retries=3 \
    CMD ["python", "-m", "lyo.healthcheck", "queue:generate", "queue:embed", "queue:evaluate", "queue:score", \
    "queue:understand"]
# The variables: see FOR_ENGINE in lyo/stack.py.
CMD GOMP_SPINCOUNT=5000 MALLOC_ARENA_MAX=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=32 LRU_CACHE_CAPACITY=32 \
    exec celery -A lyo worker -n generate@%h -P threads -Q generate,embed,evaluate,score,understand \
    -l INFO --without-mingle --without-gossip \
    -I workers.tasks.generate,workers.tasks.embed,workers.tasks.evaluate,workers.tasks.compare,workers.tasks.enrich,workers.tasks.feed,workers.tasks.foresee,workers.tasks.imports,workers.tasks.understand
