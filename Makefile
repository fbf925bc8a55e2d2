# hailo-agent. Two commands need nothing but Debian's python3, python3-venv, make and git:
#
#   make demo      see what it does, on any machine, without a chip
#   make test      every check and every test
#
# Both set up all that they need in .venv, and do nothing twice. Another Python:
#
#   make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Of the node agent in a cluster.
NAMESPACE ?= kube-system
SELECTOR ?= app.kubernetes.io/name=hailo-agent
RESOURCE ?= hailo.ai/npu
MANIFEST ?= manifests/hailo-agent.yaml
KUBECTL ?= kubectl

# Of its image.
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' hailo_agent/__init__.py)
IMAGE ?= hailo-agent:$(VERSION)
PLATFORMS ?= linux/amd64,linux/arm64
CONTAINERFILE ?= container/Dockerfile
DOCKER ?= docker

# Most tests wait for a kubelet's patience more than they compute, so more run than there are cores.
# Those against the real kernel and a real runtime share the machine's consoles: one at a time.
TEST_PROCESSES ?= 4
# More for pytest: make pytest PYTESTARGS="-k numa"
PYTESTARGS ?=

export PYTHON VENV

# $(call tool,COMMAND): fail unless the command is there.
tool = command -v $(1) >/dev/null || { echo "$@: needs $(1), which is not installed" >&2; exit 1; }
# $(call shipped,FILE): fail unless the repository has the file.
shipped = [ -e $(1) ] || { echo "$@: $(1) is not part of this release yet" >&2; exit 1; }

.DEFAULT_GOAL := help
.NOTPARALLEL: # the order of checks is part of what they say

##@ Use

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: venv ## Watch the agent at work on a simulated node: a story of half a minute
	@$(BIN)/hailo-agent simulate --story

.PHONY: bench
bench: venv ## Measure the agent on simulated nodes: a table, and a line of JSON
	@$(BIN)/python -m hailo_agent.sim.bench

##@ Check

.PHONY: test
test: venv debian-packages lint proto-check pytest ## Everything a change has to pass

.PHONY: pytest
pytest: venv ## The tests alone (PYTESTARGS="-k numa")
ifdef PYTESTARGS
	$(BIN)/pytest $(PYTESTARGS)
else
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup --ignore tests/e2e
	$(BIN)/pytest tests/e2e
endif

.PHONY: coverage
coverage: venv ## The tests, and which branches they never took
	$(BIN)/pytest --cov --cov-report=term $(PYTESTARGS)

.PHONY: e2e-long
e2e-long: venv ## The tests that take minutes, not part of `make test`
	@$(BIN)/pytest -m long --timeout=3600 $(PYTESTARGS) || { status=$$?; \
	  [ $$status -ne 5 ] || echo "e2e-long: no test is marked 'long' in this release yet" >&2; \
	  exit $$status; }

.PHONY: lint
lint: format-check ruff types imports spelling shellcheck ## Every linter

.PHONY: verify
verify: lint proto-check lock-check ## Everything static: linters, generated code, lock files

.PHONY: format
format: venv ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

.PHONY: format-check
format-check: venv
	$(BIN)/ruff format --check

.PHONY: ruff
ruff: venv
	$(BIN)/ruff check

.PHONY: types
types: venv
	$(BIN)/mypy

.PHONY: imports
imports: venv
	$(BIN)/lint-imports --no-logo

.PHONY: spelling
spelling: venv
	$(BIN)/codespell --toml pyproject.toml
	$(BIN)/validate-pyproject pyproject.toml

# The scripts have no suffix: whatever is a script says so in its first line.
.PHONY: shellcheck
shellcheck:
	@if command -v shellcheck >/dev/null; then \
	  scripts=$$(grep -lE '^#!.*[ /](ba)?sh$$' $$(find .ci hack -type f)) && \
	  echo shellcheck $$scripts && shellcheck $$scripts; \
	else \
	  echo "shellcheck: not installed, so .ci/ and hack/ were not checked" >&2; \
	fi

##@ Make

.PHONY: build
build: venv ## The wheel and the source distribution, reproducible, in dist/
	@rm -rf dist
	$(BIN)/hatchling build -d dist

.PHONY: venv
venv: ## The environment that all of this runs in
	@hack/venv

.PHONY: debian-packages
debian-packages:
	@hack/debian-packages

.PHONY: lock
lock: venv ## Lock the dependencies again (make lock UPGRADE=1: their newest versions)
	$(BIN)/uv pip compile pyproject.toml --output-file requirements/run.txt $(LOCKING)
	$(BIN)/uv pip compile pyproject.toml --group dev --constraint requirements/run.txt \
	  --output-file requirements/dev.txt $(LOCKING)

# One file for all of CPython 3.11 to 3.13 on x86_64 and aarch64. No registry is named in it: hashes
# say what a package is, wherever it is fetched from.
LOCKING = --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
  --no-annotate --quiet $(if $(UPGRADE),--upgrade)

.PHONY: lock-check
lock-check: venv ## Fail if the lock files do not fit pyproject.toml
	$(BIN)/pytest --quiet tests/house/test_locks.py

.PHONY: proto
proto: venv ## Compile protos/ into hailo_agent/wire/generated/
	hack/update-proto

.PHONY: proto-check
proto-check: venv ## Fail if the generated code is not what protos/ compiles to
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && hack/update-proto "$$fresh/wire" && \
	  { diff -ru --exclude=__pycache__ hailo_agent/wire/generated "$$fresh/wire" || \
	  { echo "proto-check: the generated code differs from protos/: run 'make proto'" >&2; exit 1; }; }

.PHONY: docker-build
docker-build: ## The container image for this machine (IMAGE=..., DOCKER=podman)
	@$(call shipped,$(CONTAINERFILE))
	@$(call tool,$(DOCKER))
	$(DOCKER) build --file $(CONTAINERFILE) --tag $(IMAGE) .

.PHONY: docker-build-multiarch
docker-build-multiarch: ## The container image for amd64 and arm64 (PLATFORMS=...)
	@$(call shipped,$(CONTAINERFILE))
	@$(call tool,$(DOCKER))
	@$(DOCKER) buildx version >/dev/null 2>&1 || \
	  { echo "$@: needs $(DOCKER) buildx, which is not installed" >&2; exit 1; }
	$(DOCKER) buildx build --platform $(PLATFORMS) --file $(CONTAINERFILE) --tag $(IMAGE) .

##@ Deploy

.PHONY: deploy
deploy: ## Run the agent on every node of the cluster kubectl points to
	@$(call shipped,$(MANIFEST))
	@$(call tool,$(KUBECTL))
	$(KUBECTL) apply --filename $(MANIFEST)

.PHONY: deploy-local
deploy-local: ## The same with an image built here, in a kind, minikube or k3s cluster
	@$(call shipped,$(MANIFEST))
	@$(call tool,$(KUBECTL))
	@$(MAKE) --no-print-directory docker-build
	@case "$$($(KUBECTL) config current-context)" in \
	  kind-*) set -x; kind load docker-image $(IMAGE) --name "$$($(KUBECTL) config current-context | cut -c6-)" ;; \
	  minikube) set -x; minikube image load $(IMAGE) ;; \
	  *) if command -v k3s >/dev/null; then set -x; $(DOCKER) save $(IMAGE) | k3s ctr images import -; \
	     else echo "$@: the current context is no kind or minikube cluster, and there is no k3s here" >&2; exit 1; fi ;; \
	esac
	$(KUBECTL) apply --filename $(MANIFEST)

.PHONY: undeploy
undeploy: ## Remove what deploy made
	@$(call shipped,$(MANIFEST))
	@$(call tool,$(KUBECTL))
	$(KUBECTL) delete --ignore-not-found --filename $(MANIFEST)

.PHONY: status
status: ## Is an agent running on each node?
	@$(call tool,$(KUBECTL))
	$(KUBECTL) get pods --namespace $(NAMESPACE) --selector $(SELECTOR) --output wide

.PHONY: check-nodes
check-nodes: ## How many devices does each node offer?
	@$(call tool,$(KUBECTL))
	$(KUBECTL) get nodes --output 'custom-columns=NODE:.metadata.name,CAPACITY:.status.capacity.$(subst .,\.,$(RESOURCE)),ALLOCATABLE:.status.allocatable.$(subst .,\.,$(RESOURCE))'

##@ Tidy

.PHONY: clean
clean: ## Remove what builds and tools leave behind
	rm -rf build dist htmlcov .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv\* -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## As clean, and the environments too
	rm -rf .venv*
