# Two commands do all the set-up: `make serve` runs Tandem, `make test` runs its tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup serve test test-peers soak fuzz check bench lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tandem needs Python 3.11 or newer, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || deploy/debian-packages.sh python3-venv
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

serve: setup
	@$(BIN)/tandem serve

# Real peers of the tests: SIP phones, a SIP carrier and what stands at the edge, a browser, a TURN server, speech
# synthesisers, a sound editor; Helm.
test-peers: $(VENV)/.peers
	@deploy/debian-packages.sh baresip sip-tester kamailio kamailio-tls-modules rtpengine-daemon tshark chromium \
		coturn sox espeak-ng libflite1 festival festvox-kdlpc16k \
		festvox-us-slt-hts

$(VENV)/.peers: tests/requirements.txt $(VENV)/.installed
	@command -v cc >/dev/null || deploy/debian-packages.sh gcc libc6-dev
	@$(BIN)/python -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null || \
		deploy/debian-packages.sh python3-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/requirements.txt
	@touch $@

# Two processes: in one the tests that talk in real time and mostly wait, in the other those that compute.
test: setup test-peers
	$(BIN)/pytest --quiet --numprocesses 2

soak: setup test-peers
	$(BIN)/pytest --quiet -m soak

# Broken SIP, other messages each time; a seed that broke something is printed with it.
fuzz: setup test-peers
	TANDEM_TEST_FUZZ_SEED=$${TANDEM_TEST_FUZZ_SEED:-$$(date +%s)} TANDEM_TEST_FUZZ_MESSAGES=20000 \
		$(BIN)/pytest --quiet tests/sip/test_fuzz.py tests/sip/edge/test_fuzz.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement bench/requirements.txt
	$(BIN)/python -m bench

# Resolve the newest versions that pyproject.toml allows; torch stays where it is pinned.
lock:
	rm -rf $(VENV).lock && $(PYTHON) -m venv $(VENV).lock
	$(VENV).lock/bin/pip install --quiet --upgrade pip setuptools
	$(VENV).lock/bin/pip install --quiet torch==2.13.0 . --group dev
	$(VENV).lock/bin/pip freeze --all --exclude tandem --exclude pip | sed -e 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV).lock

clean:
	rm -rf $(VENV) data build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
