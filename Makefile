# Two commands matter: `make run` and `make test`. Each target calls what you could type yourself.
PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/worker.txt)
# Another build of torch, e.g. for a GPU: rm -f .venv/*.installed; make install TORCH_INDEX=the URL of PyTorch's index of it
TORCH_INDEX ?=
# SMOKE=1 shows that a benchmark runs, in seconds, and measures nothing.
BENCH := $(if $(SMOKE),--smoke)

.PHONY: run install test nightly lint lock audit backup restore bench bench-engine bench-train bench-feed bench-fairness soak tutor

run: .venv/local.installed
	@exec $(BIN)/python -m lyo.run

install: .venv/dev.installed

# A set of packages: those of requirements/SET.lock, as they are locked, then torch, whose builds differ by machine and
# which finds all that it shares with others there. Stamps go first and come last, so what was interrupted is begun anew.
WITHIN_local := local
WITHIN_bench := local bench
WITHIN_dev := local bench dev
.venv/%.installed: requirements/%.lock requirements/worker.txt
	@$(PYTHON) -c 'import sys; sys.exit("Lyo needs Python 3.11 or later; this is " + sys.version.split()[0] + \
		". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@ls .venv/*.installed > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@rm -f .venv/*.installed
	$(BIN)/python -m pip install --require-hashes --no-deps --only-binary :all: -r $<
	$(BIN)/python -m pip install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $(foreach set,$(WITHIN_$*),.venv/$(set).installed)

# What makes locks and audits, apart from what it audits.
.venv/tools/installed: requirements/tools.lock
	@rm -f $@
	@test -x $(TOOLS)/python || $(PYTHON) -m venv .venv/tools
	@$(TOOLS)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r $<
	@touch $@

test: install
	@$(BIN)/python -m pytest

# And what takes longer: the benchmarks at their smallest, frozen processes, what the API takes and refuses by machine.
nightly: install
	@$(BIN)/python -m pytest --nightly

# Nothing listens at these addresses: what these two run needs settings, and no server.
lint tutor: export LYO_DATABASE_URL = postgres://lyo@127.0.0.1:1/lyo
lint tutor: export LYO_BROKER_URL = redis://127.0.0.1:1/0
lint tutor: export LYO_CACHE_URL = redis://127.0.0.1:1/1
lint tutor: export LYO_SECRET_KEY = not-a-secret:-only-long-and-varied-enough-to-pass-check-deploy
# The checks are of production's settings.
lint: export LYO_HTTPS = true
lint: export LYO_LOG_LEVEL = ERROR
lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --deploy --fail-level ERROR

# Locks for every platform and for Python 3.11 to 3.14. What is locked stays as it is where the requirements allow it;
# UPGRADE=1 takes the newest. All sets have the same versions: the largest is locked first, and binds the others.
LOCK := $(TOOLS)/uv pip compile --quiet --universal --python-version 3.11 --no-python-downloads --only-binary :all: \
	--generate-hashes --no-emit-package torch --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
lock: .venv/tools/installed
	$(LOCK) requirements/dev.txt -o requirements/dev.lock
	for set in base worker local bench; do \
		$(LOCK) requirements/$$set.txt -c requirements/dev.lock -o requirements/$$set.lock || exit 1; done
	$(LOCK) requirements/tools.txt -o requirements/tools.lock

# The bill of materials of what is installed, torch included, and what is known to be vulnerable of what is locked.
audit: .venv/local.installed .venv/tools/installed
	@mkdir -p .lyo && rm -f .lyo/audit.json
	$(TOOLS)/cyclonedx-py environment --output-reproducible --output-file .lyo/sbom.json $(BIN)/python
	@sed -n '/^[a-zA-Z0-9]/s/ *\\$$//p' requirements/dev.lock > .lyo/audit.txt; echo "$(TORCH)" >> .lyo/audit.txt
	$(TOOLS)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement .lyo/audit.txt \
		--format json --output .lyo/audit.json || { test -s .lyo/audit.json || \
		echo "make audit: nothing is known: pip-audit gets no answer for some packages (its last line names one)." >&2; exit 1; }

# Of the stack that runs, or of the servers that LYO_*_URL name: see docs/guides/operations.md.
backup: .venv/local.installed
	@test -n "$(TO)" || { echo "make backup TO=a folder that is not there yet" >&2; exit 2; }
	@$(BIN)/python manage.py backup --to "$(TO)"

restore: .venv/local.installed
	@test -n "$(FROM)" || { echo "make restore FROM=the folder of a backup" >&2; exit 2; }
	@$(BIN)/python manage.py restore --from "$(FROM)" $(if $(FORCE),--force)

bench: .venv/bench.installed
	@$(BIN)/python -m tests.bench.foundation $(BENCH)

bench-engine: .venv/bench.installed
	@$(BIN)/python -m tests.bench.engine $(BENCH)

bench-train: .venv/bench.installed
	@$(BIN)/python -m tests.bench.train $(BENCH)

bench-feed: .venv/bench.installed
	@$(BIN)/python -m tests.bench.feed $(BENCH)

bench-fairness: .venv/bench.installed
	@$(BIN)/python -m tests.bench.fairness $(BENCH)

# Memory under an hour of mixed load; fails where it grows: make soak MINUTES=60
soak: .venv/local.installed
	@$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),60) $(BENCH)

# The tutor that is shipped, trained anew: make tutor GSM8K=train.jsonl BRIDGE=train.jsonl, of their repositories' data.
tutor: .venv/local.installed
	@$(BIN)/python manage.py make_lessons --gsm8k "$(GSM8K)" --bridge "$(BRIDGE)" --output .lyo/tutor
	@$(BIN)/python -m workers.training.tutor .lyo/tutor
