# Each target makes the environment it needs; nothing has to be installed before.
PY   := .venv/bin/python
SYSTEM ?=
PIP  := .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/.ready
STAMP := .venv/.ready-dev

.PHONY: demo test test-golden lint type bench docs clean

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[train,fast]'
	touch $(READY)

# gradio wants a Pillow below 13 on paper only; pictures are compared bit by bit with Pillow 13.
# lmms-eval asks for torchvision and timm, and works without them.
$(STAMP): $(READY)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps gradio gradio_client hf-gradio lmms-eval==0.7.3
	touch $(STAMP)

demo: $(READY)          ## train a small multimodal model on this machine and talk to it
	.venv/bin/retinue quickstart

test: $(STAMP) lint type  ## everything CI runs
	$(PY) -m pytest -n 2 --dist loadfile -m "not gpu" tests

test-golden: $(STAMP)   ## SYSTEM=m3-llava for one system, RETINUE_GOLDEN=<folder> for another root
	RETINUE_GOLDEN_SYSTEM=$(SYSTEM) $(PY) -m pytest tests/golden

lint: $(STAMP)
	.venv/bin/ruff check src tests benchmarks examples
	.venv/bin/ruff format --check src tests benchmarks examples

type: $(STAMP)
	.venv/bin/mypy

bench: $(STAMP)         ## every benchmark at a quick size
	for f in benchmarks/bench_*.py; do $(PY) $$f --quick || exit 1; done

docs: $(STAMP)          ## the generated reference pages
	$(PY) docs/generate.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
