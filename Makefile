# Two commands matter: `make run` and `make test`. Each target calls what you could type yourself.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/worker.txt)
# Another build of torch, e.g. for a GPU: rm -f .venv/installed; make install TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?=

.PHONY: run install test lint bench bench-engine bench-train bench-feed tutor

run: install
	@$(BIN)/python -m lyo.run

install: .venv/installed

# The stamp is removed first and made last: an install that was interrupted is begun anew.
.venv/installed: $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit("Lyo needs Python 3.11 or later; this is " + sys.version.split()[0] + \
		". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	$(BIN)/python -m pip install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -r requirements/dev.txt
	@touch $@

test: install
	@$(BIN)/python -m pytest

# Nothing listens at these addresses: the checks read code, and production's settings.
lint: export LYO_DATABASE_URL = postgres://lyo@127.0.0.1:1/lyo
lint: export LYO_BROKER_URL = redis://127.0.0.1:1/0
lint: export LYO_CACHE_URL = redis://127.0.0.1:1/1
lint: export LYO_SECRET_KEY = not-a-secret:-only-long-and-varied-enough-to-pass-check-deploy
lint: export LYO_HTTPS = true
lint: export LYO_LOG_LEVEL = ERROR
lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --deploy --fail-level ERROR

bench: install
	@$(BIN)/python -m tests.bench.foundation

bench-engine: install
	@$(BIN)/python -m tests.bench.engine

bench-train: install
	@$(BIN)/python -m tests.bench.train

bench-feed: install
	@$(BIN)/python -m tests.bench.feed

# The tutor that is shipped, trained anew: make tutor GSM8K=train.jsonl BRIDGE=train.jsonl, of their repositories' data.
tutor: install
	@$(BIN)/python manage.py make_lessons --gsm8k "$(GSM8K)" --bridge "$(BRIDGE)" --output .lyo/tutor
	@$(BIN)/python -m workers.training.tutor .lyo/tutor
