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
PIP := install -qq --no-input --disable-pip-version-check
ARGS ?=

up: $(READY)
	@.venv/bin/plurank up $(ARGS)

down: $(READY)
	@.venv/bin/plurank down $(ARGS)

test: $(READY) .venv/packages
	PATH="$(CURDIR)/.venv/bin:$$PATH" OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(ARGS)

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
	@.venv/bin/python -c 'from ranker.pipeline import warm; warm()'
	@rm -f .venv/ready-* && touch $@

# Tests scrape with a real Prometheus and start the service in a network of its own. Without these they skip.
# Prometheus is unpacked into .venv, not installed: its package would start a daemon and keep it.
.venv/packages: | $(READY)
	@command -v prometheus >/dev/null || { command -v apt-get >/dev/null && cd .venv \
		&& { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && apt-get download -qq prometheus \
		&& dpkg -x prometheus_*.deb prometheus && rm prometheus_*.deb \
		&& ln -sf ../prometheus/usr/bin/prometheus ../prometheus/usr/bin/promtool bin/; } >/dev/null 2>&1 \
		|| echo "no prometheus here and apt-get cannot fetch it; tests that need it are skipped" >&2
	@command -v ip >/dev/null || { [ "$$(id -u)" = 0 ] \
		&& apt-get install -qq -y --no-install-recommends iproute2; } >/dev/null 2>&1 \
		|| echo "no ip here and no right to install iproute2; tests that need it are skipped" >&2
	@touch $@
