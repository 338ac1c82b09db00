# The commands of this project; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ifndef CARGO_TARGET_DIR
CARGO_TARGET_DIR := $(shell tests/target-folder.sh)
endif
export CARGO_TARGET_DIR
# Programs that tests/set-up.sh installs take precedence, and a Go that is too old fetches the one that go.mod requires.
export PATH := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/databasecluster-operator/go/bin:$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
export GOTOOLCHAIN ?= auto
DEBUG := $(CARGO_TARGET_DIR)/debug
RELEASE := $(CARGO_TARGET_DIR)/release

# Options of `make run`, `make chaos`, `make bench-fleet`, `make bench` and others, given on the command line or in the
# environment; empty ones count as not given.
OPTIONS := CHECK CLUSTERS DELAY_MS FLEETS GATES LOADING ONCE PROFILER REPLICAS READY_TIMEOUT_SECONDS QUICK ROUNDS ROLLOUTS FROM SIDES
$(foreach option,$(OPTIONS),$(eval $(if $($(option)),export,unexport) $(option)))

.PHONY: help
help: ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

# Prints progress when it takes longer. $(1): what is built, $(2): the next step.
build = tests/progress.sh "build: $(1)" "$(2)" cargo build --locked

.PHONY: run
run: ready ## a control plane, three replicas and sample DatabaseClusters, live; ONCE=1, CLUSTERS=60
	@$(call build,operator and fleet,the fleet) -p databasecluster-operator -p testbed --bins
	@exec "$(DEBUG)/run-fleet" --end-with-parent

.PHONY: start-replicas
start-replicas: ## starts the replicas of `make run` that have ended again
	@[ -x "$(DEBUG)/run-fleet" ] || { echo "make start-replicas: no fleet is up: start one with make run" >&2; exit 1; }
	@exec "$(DEBUG)/run-fleet" --start-ended

.PHONY: test
test: ## every check and every test; ends with how many passed and failed
	@exec tests/run-tests.sh

.PHONY: upgrade
upgrade: ready ## from version cc6f500, which it builds first, to this one, on a real API server
	@EARLIER_OPERATOR=$$(tests/upgrade/earlier.sh) cargo test --locked --test upgrade -- --nocapture

.PHONY: fresh
fresh: ready ## run and test on a bare Debian in a folder, as a user without root, with sudo, and as root; needs root. CASES="nobody sudo root"
	@exec tests/fresh/run.sh

.PHONY: control-plane
control-plane: ## builds the local control plane's programs (first time: some minutes)
	@tests/set-up.sh run
	@tests/control-plane/build.sh

.PHONY: chaos
chaos: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
chaos: ready release ## injects faults into a fleet and checks the audit log; QUICK=1 in under 10 minutes, ONLY="scenario ...", SEED=7, REPEAT=30
	@$(call build,chaos,the operator) -p chaos --bins
	@$(call build,operator with failpoints,the experiments) --bin databasecluster-operator-failpoints --features failpoints
	@"$(DEBUG)/chaos" run $(ONLY) $(if $(QUICK),--set quick) $(SEED:%=--seed %) $(REPEAT:%=--repeat %)
	@$(if $(ONLY),,"$(DEBUG)/sigkill")

.PHONY: chaos-control
chaos-control: ready ## the scenarios with failpoints, with the failpoints disabled: each has to pass
	@$(call build,chaos,the operator) -p chaos --bins
	@$(call build,operator,the experiments) --bin databasecluster-operator
	@"$(DEBUG)/chaos" run --control

.PHONY: bench-fleet
bench-fleet: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
bench-fleet: ready release ## CPU, memory and requests for 3,000 DatabaseClusters, of a quiet fleet and of one cluster, the price of the fence and of handovers
	@$(call build,benchmarks,the measurement) -p benchmarks
	@status=0; for benchmark in handover join scale quiet cluster fence; do \
	  "$(DEBUG)/benchmarks" $$benchmark || status=$$?; [ $$status -ne 130 ] || break; \
	done; exit $$status

.PHONY: bench-watch
bench-watch: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
bench-watch: ready release ## what several replicas cost over one, gate on and off; CLUSTERS=20000 FLEETS=1,2,3,5 GATES=on,off
	@$(call build,benchmarks,the measurement) -p benchmarks
	@exec "$(DEBUG)/benchmarks" watch

# One build for each allocator, kept side by side.
ALLOCATORS := system jemalloc
.PHONY: bench-allocator
bench-allocator: ready ## memory after everything was listed again, by allocator; CLUSTERS=3000
	@mkdir -p "$(RELEASE)/allocators"
	@for allocator in $(ALLOCATORS); do \
	  features=--no-default-features; [ "$$allocator" = system ] || features="$$features --features $$allocator"; \
	  $(call build,operator with $$allocator,the next allocator) --release -p databasecluster-operator --bin databasecluster-operator $$features; \
	  cp "$(RELEASE)/databasecluster-operator" "$(RELEASE)/allocators/$$allocator"; \
	done
	@$(call build,benchmarks,the measurement) -p benchmarks
	@exec "$(DEBUG)/benchmarks" relist $(ALLOCATORS:%="$(RELEASE)/allocators/%")

.PHONY: profile
profile: ready ## where CPU time or memory goes while DatabaseClusters are created, as tables in .run/; CLUSTERS=300, PROFILER=perf or heap
	@$(call build,operator with line numbers,the profile) --profile profiling -p databasecluster-operator --bin databasecluster-operator $(if $(filter heap,$(PROFILER)),--no-default-features)
	@$(call build,benchmarks,the profile) -p benchmarks
	@exec "$(DEBUG)/benchmarks" profile "$(CARGO_TARGET_DIR)/profiling/databasecluster-operator"

.PHONY: series
series: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
series: ready release ## how many series each replica exports with 10,000 DatabaseClusters; CLUSTERS=10000
	@$(call build,benchmarks,the measurement) -p benchmarks
	@exec "$(DEBUG)/benchmarks" series

.PHONY: pictures
pictures: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
pictures: ready release ## creates docs/pictures of real fleets: the fleet page in a browser, panels of dashboards from Prometheus's data
	@$(call build,pictures,the pictures) -p testbed -p observability --bins
	@"$(DEBUG)/pictures"
	@"$(DEBUG)/panels"

.PHONY: model
model: ## a deeper search of the ownership model, and a long simulation; SEEDS=10000, MODEL_DEEPER=1
	@$(call build,simulation,the simulation) --release -p simulation --bins
	@"$(RELEASE)/simulate" $(or $(SEEDS),10000)
	@MODEL_DEEPER=$(or $(MODEL_DEEPER),1) MODEL_SECONDS=1800 cargo test --locked --quiet -p simulation --test model promises -- --nocapture --test-threads 1

.PHONY: manifests
manifests: ## writes the generated files below deploy/
	@cargo run --locked --quiet --bin databasecluster-operator -- crd > deploy/base/.crd.yaml.part
	@mv deploy/base/.crd.yaml.part deploy/base/crd.yaml
	@cargo run --locked --quiet --bin databasecluster-operator -- fence > deploy/base/.fence.yaml.part
	@mv deploy/base/.fence.yaml.part deploy/base/fence.yaml
	@cargo run --locked --quiet -p packaging -- manifests

.PHONY: book
book: ## the documentation as a site, with checked links; OUT=folder
	@tests/book/build.sh $(OUT)

.PHONY: rights
rights: ready ## compares what the operator may do with what it did in the tests, by their audit logs
	@exec tests/rights.sh

.PHONY: lint
lint: ## format and lints, no tests
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@cargo clippy --bins --features failpoints --locked -- -D warnings
	@tests/benchmarks/peer-kube-rs/lint.sh

.PHONY: image
image: ## the container image as an archive, and its bill of materials; OUT=folder, TWICE=1 compares two builds
	@tests/set-up.sh operator
	@exec deploy/image/build.sh

.PHONY: e2e
e2e: ## on real nodes of this machine, from installing to upgrading; needs root. ROLLOUTS=2, FROM=commit, ONLY="a b"
	@exec tests/e2e/run.sh

.PHONY: bench
bench: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
bench: ready release ## the operator beside others that do the same job, in one run: tables, .run/bench.json and .svg; CLUSTERS=500,2000,10000, ROUNDS=3, SIDES=operator,go, CHECK=1
	@$(call build,benchmarks,the measurement) -p benchmarks --bins
	@exec "$(DEBUG)/benchmarks" bench --json .run/bench.json

.PHONY: bench-requests
bench-requests: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
bench-requests: ready release ## requests and the API server's CPU of a DatabaseCluster created and changed, beside the Go peer, and by kind of request; CLUSTERS=300, ROUNDS=1
	@$(call build,benchmarks,the measurement) -p benchmarks
	@"$(DEBUG)/benchmarks" work --peer
	@exec "$(DEBUG)/benchmarks" writes

.PHONY: bench-micro
bench-micro: ## micro-benchmarks of queue, ring, hash, decode, render and digest, from 1,000 to 1,000,000 objects; ONLY=queue
	@tests/set-up.sh operator
	@cargo bench --locked -p benchmarks --bench micro -- $(ONLY)

.PHONY: bench-latency
bench-latency: export OPERATOR_BIN := $(RELEASE)/databasecluster-operator
bench-latency: ready release ## what several replicas do over one with 20 ms added to each request; CLUSTERS=300, FLEETS=1,5, DELAY_MS=20
	@$(call build,benchmarks,the measurement) -p benchmarks --bins
	@exec "$(DEBUG)/benchmarks" latency

.PHONY: bench-docs
bench-docs: ## takes the results of bench and bench-micro into docs/performance, and writes the pages that show them
	@$(call build,benchmarks,the pages) -p benchmarks --bins
	@"$(DEBUG)/benchmarks" docs --bench .run/bench.json --micro "$(CARGO_TARGET_DIR)/criterion"

# Only the operator is built for speed: what observes it need not be.
.PHONY: release
release:
	@$(call build,operator for speed,what measures it) --release -p databasecluster-operator --bin databasecluster-operator

# What `run`, `chaos` and `bench-fleet` need before anything is built.
.PHONY: ready
ready:
	@tests/set-up.sh run
	@tests/control-plane/build.sh > /dev/null
