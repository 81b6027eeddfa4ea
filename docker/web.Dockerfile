# The image of all that needs no torch: web, the `default` worker, beat, Flower, and the migrations.
# Build it from the repository's root: docker build -f docker/web.Dockerfile -t lyo-web .
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 LYO_STATIC_ROOT=/app/static LYO_FILES_DIR=/files
WORKDIR /app
# Process 1 cannot be killed from within: tini is, and what it starts can be, so that what stands still ends.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["tini", "--"]
RUN useradd --uid 10001 --no-create-home lyo && install -d -o 10001 /files /models
COPY requirements/base.lock requirements/
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/base.lock
COPY manage.py .
COPY lyo lyo
COPY apps apps
# Settings want addresses; collectstatic calls none of them.
RUN LYO_DATABASE_URL=postgres://build LYO_BROKER_URL=redis://build LYO_CACHE_URL=redis://build LYO_SECRET_KEY=build \
    python manage.py collectstatic --noinput

USER 10001
EXPOSE 8000
# Life, not readiness: a web process whose database is down must be left alone until the database is back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["uvicorn", "lyo.asgi:application", "--host=0.0.0.0", "--port=8000", "--loop=uvloop", "--http=lyo.http:Protocol", "--ws=none", \
     "--no-proxy-headers", "--no-access-log", "--timeout-graceful-shutdown=2", "--timeout-keep-alive=15"]
