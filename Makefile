# Two commands: `make demo` and `make test`. Everything is installed into .venv; PYTHON picks the interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)-$(shell echo $$PPID)
STEPS  ?=
SLOW   ?=
CALLS  ?=
EXTRAS ?= dev
BIN    := $(VENV)/bin

.PHONY: demo test lint kernels install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "error: Python 3.10 to 3.13 is needed, this is %d.%d; choose one with make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: install
	$(BIN)/python train.py attention=lightning hydra.run.dir=$(RUN) $(if $(STEPS),trainer.max_steps=$(STEPS))
	$(BIN)/python eval.py run=$(RUN)
	@echo; echo "A sample:"
	$(BIN)/python scripts/generate.py run=$(RUN) prompt='def read_lines(path):' max_new_tokens=120 temperature=0.7 top_p=0.9 seed=1
	@echo; echo "Results and plots: $(RUN)/eval   Metrics: $(RUN)/metrics.csv   Checkpoints: $(RUN)/checkpoints"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(if $(SLOW),--slow)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: install
	$(BIN)/python scripts/compile_kernels.py $(if $(CALLS),calls=$(CALLS))

clean:
	rm -rf $(VENV)
