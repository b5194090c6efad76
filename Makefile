# The commands of this project. Each makes .venv by itself, from the pinned set in constraints.txt.
#   make up      everything on this machine: broker, store, service, trainer, audience (ARGS="--data FILE" ...)
#   make test    every test; those that need a part this machine cannot have are skipped with the reason
#   make check   lint, format, types, import contracts
#   make bench   writes benchmarks/results.md
#   make down    ends an `up` that runs elsewhere

.PHONY: up test check bench down
.DEFAULT_GOAL := up

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$name"; break; }; done)
READY := .venv/ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP := install --quiet --no-input --disable-pip-version-check
ARGS ?=

up: $(READY)
	@.venv/bin/plurank up $(ARGS)

down: $(READY)
	@.venv/bin/plurank down $(ARGS)

test: $(READY) .venv/packages
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(ARGS)

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks $(ARGS)

# A venv without ensurepip (as on Debian without python3-venv) is filled by the pip outside of it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "plurank needs Python 3.11 or later; install it, or name one: make PYTHON=..." >&2; exit 1; }
	@test -x .venv/bin/python || { echo "making .venv with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv .venv 2>/dev/null || { $(PYTHON) -m venv --clear --without-pip .venv \
		&& $(PYTHON) -m pip --python .venv/bin/python $(PIP) pip; }; }
	@echo "installing the pinned packages into .venv (some minutes the first time)"
	@.venv/bin/python -m pip $(PIP) -c constraints.txt -e '.[dev]'
	@rm -f .venv/ready-* && touch $@

# Tests scrape with a real Prometheus and start the service in a network of its own. Without these they skip.
.venv/packages:
	@if command -v prometheus >/dev/null && command -v ip >/dev/null; then :; \
	elif command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
		echo "installing prometheus and iproute2 with apt-get"; \
		AS=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		{ $$AS apt-get update -qq && $$AS env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends prometheus iproute2; } >.venv/packages.log 2>&1 \
			|| echo "apt-get could not (see .venv/packages.log); tests that need them are skipped" >&2; \
	else echo "no prometheus or ip here, and no right to install them; tests that need them are skipped" >&2; fi
	@touch $@
