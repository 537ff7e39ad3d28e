# The few verbs people type. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Where the demo and the e2e run: builtin (a real Kubernetes, built here from source, in network namespaces), kind, or current (your KUBECONFIG).
CLUSTER ?= builtin
export CLUSTER

# Built artefacts live in the user's cache, keyed by what they depend on, so that a second clone starts warm.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/palisade
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
LOCK := $(shell { cat Cargo.lock; rustc -vV 2>/dev/null; } | sha256sum | cut -c1-16)
export CARGO_TARGET_DIR ?= $(CACHE)/target-$(LOCK)

# Static binaries run in an image FROM scratch. Naming the target keeps these flags away from proc macros and build scripts.
HOST_VAR := $(shell echo $(HOST) | tr 'a-z-' 'A-Z_')
RUSTFLAGS_HERE = -C target-feature=+crt-static $(if $(shell command -v mold),-C link-arg=-fuse-ld=mold)
FLAGS = CARGO_TARGET_$(HOST_VAR)_RUSTFLAGS="$(RUSTFLAGS_HERE)"
CARGO = $(FLAGS) cargo
ON = --locked --target $(HOST)
BIN = $(CARGO_TARGET_DIR)/$(HOST)/debug
RELEASE = $(CARGO_TARGET_DIR)/$(HOST)/release

export PALISADE_BROKER_BIN = $(BIN)/palisade-broker
export PALISADE_OPERATOR_BIN = $(BIN)/palisade-operator

.PHONY: help
help: ## List the verbs
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing on Debian (packages only; needs root)
	@bash e2e/bootstrap.sh

# Cargo knows a file by its path in the workspace and its time, so that it would take what another clone has built for this one's.
.PHONY: own
own:
	@mkdir -p $(CARGO_TARGET_DIR)
	@if [ "$$(cat $(CARGO_TARGET_DIR)/clone 2>/dev/null)" != "$(CURDIR)" ]; then \
	  find broker crds operator e2e -name '*.rs' -exec touch {} +; echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/clone; \
	fi

.PHONY: build
build: setup own ## Build the broker, the operator and the test driver
	@echo "[build] Rust workspace into $(CARGO_TARGET_DIR) (10 to 15 minutes from nothing on two cores, seconds when warm)"
	@# The whole workspace: with the features of a part of it, the tests would have to compile many dependencies anew.
	@$(CARGO) build $(ON) --workspace --bins

.PHONY: demo
demo: build ## Start a real Kubernetes, install the chart, apply examples/quickstart and show what it does
	@$(BIN)/palisade-e2e demo

.PHONY: demo-stop
demo-stop: build ## Remove the cluster and everything else the demo started (packages and the cache stay)
	@$(BIN)/palisade-e2e demo-stop

.PHONY: test
test: build ## Everything: unit, property, CRDs on a real API server, real clients and tools, the e2e on a cluster
	@$(FLAGS) bash e2e/test.sh $(ON) --workspace

SEEDS ?= 10000
SEED_BASE ?= 0
.PHONY: sim
sim: setup own ## Simulate SEEDS clusters from SEED_BASE on: network, disks, crashes; a failing seed prints its trace
	@$(CARGO) run $(ON) -q -p palisade-sim -- --seeds $(SEEDS) --base $(SEED_BASE)

.PHONY: e2e
e2e: build ## Only the e2e on a cluster (CLUSTER=builtin|kind|current)
	@$(CARGO) test $(ON) -p palisade-e2e --test cluster --test quickstart -- --nocapture

.PHONY: crds
crds: setup own ## Write crds/yaml and the chart's copy from the Rust types
	@$(CARGO) run $(ON) -q -p palisade-crds -- crds/yaml charts/palisade/templates/crds

.PHONY: images
images: build ## Build the images as archives, without a container engine (e2e/images/Dockerfile is for those who have one)
	@echo "[images] release build of the broker and the operator into $(CARGO_TARGET_DIR) (about 8 minutes from nothing on two cores)"
	@$(CARGO) build $(ON) --release -p palisade-server -p palisade-operator --bins
	@PALISADE_BROKER_BIN=$(RELEASE)/palisade-broker PALISADE_OPERATOR_BIN=$(RELEASE)/palisade-operator $(BIN)/palisade-e2e images

.PHONY: fuzz
FUZZ_SECONDS ?= 600
fuzz: ## Run the fuzz targets of broker/*/fuzz for FUZZ_SECONDS each (needs cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo "error: cargo-fuzz is not installed: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@# Inputs that were found are kept in the first directory; the second holds those that were made by hand.
	@for dir in broker/*/fuzz; do \
	  targets=$$(cd $$dir && RUSTC_BOOTSTRAP=1 cargo fuzz list); \
	  if [ -z "$$targets" ]; then echo "error: $$dir has no fuzz targets" >&2; exit 1; fi; \
	  for target in $$targets; do \
	    corpus="$(CURDIR)/$$dir/corpus/$$target"; seeds="$(CURDIR)/$$dir/seeds/$$target"; \
	    mkdir -p "$$corpus"; \
	    if [ ! -d "$$seeds" ]; then seeds=; fi; \
	    echo "[fuzz] $$dir $$target for $(FUZZ_SECONDS) s"; \
	    (cd $$dir && env -u CARGO_TARGET_DIR RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --target-dir "$(CACHE)/fuzz" $$target "$$corpus" $${seeds:+"$$seeds"} \
	      -- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -rss_limit_mb=2048 -print_final_stats=1) || exit 1; \
	  done; \
	done

.PHONY: bench
BENCH_TARGET ?= $(CACHE)/bench-$(shell { cat e2e/bench/Cargo.lock; rustc -vV 2>/dev/null; } | sha256sum | cut -c1-16)
export CELLS QUICK
bench: own ## Measure against Apache Kafka (CELLS=<regex>, QUICK=1; see e2e/bench/README.md)
	@bash e2e/bootstrap.sh libssl-dev pkg-config
	@echo "[bench] release build of the broker into $(CARGO_TARGET_DIR) (about 6 minutes from nothing on two cores)"
	@$(CARGO) build $(ON) --release -p palisade-server --bin palisade-broker
	@echo "[bench] load generator into $(BENCH_TARGET)"
	@CARGO_TARGET_DIR=$(BENCH_TARGET) cargo build --locked --release --manifest-path e2e/bench/Cargo.toml
	@$(BENCH_TARGET)/release/palisade-bench run --broker $(RELEASE)/palisade-broker --cache $(CACHE) --out target/bench \
	  $(if $(QUICK),--quick) --cells "$${CELLS:-}"

.PHONY: lint
lint: setup own ## Format, clippy, licences and bans of dependencies (needs cargo-deny)
	@cargo fmt --all --check
	@$(CARGO) clippy $(ON) --workspace --all-targets -- -D warnings
	@cargo deny --all-features check bans licenses sources
