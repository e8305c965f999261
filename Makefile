# SPDX-License-Identifier: Apache-2.0
#
#   make demo    everything to see the main job
#   make test    everything to pass all tests
#
# Both work on a fresh machine with Go, make, git and a C compiler.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BUILD := $(CURDIR)/build
export KUBECONFIG := $(BUILD)/kubeconfig
export KUBEBUILDER_ASSETS := $(BUILD)/envtest
KUBECTL := $(BUILD)/bin/kubectl

# The race detector needs a C compiler and is always on.
GO_TEST := CGO_ENABLED=1 go test -race

include make/cluster.mk

##@ Start here

.PHONY: help
help: ## This text.
	@awk 'BEGIN {FS = ":.*##"} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: cluster images deploy ## Back a PostgreSQL up, destroy it, restore it, compare the rows.
	@go run ./test/demo

.PHONY: test
test: need-cc unit integration e2e ## All tests: unit, integration, end to end.
	@echo "all tests passed"

##@ Tests

.PHONY: unit
unit: need-cc ## Tests beside the code; nothing else is needed.
	@$(GO_TEST) -timeout 15m $$(go list ./... | grep -v /test/) ./test/bench
	@cd test/cluster && $(GO_TEST) ./...

# -count 1: Go's test cache does not know the programs that these tests build and run.
# Some need root, loop devices, control groups: with KANISTER_KOPIA_SKIP_NOTHING=1 they fail
# where they cannot run, and are not skipped.
# -parallel 4: they wait more than they compute. The longest package goes first, and alone.
.PHONY: integration
integration: need-cc tools ## Against a real API server, Kopia server and S3 gateway, as plain processes.
	@$(GO_TEST) -timeout 45m -count 1 -parallel 4 -tags integration -run Integration ./repositoryserver
	@$(GO_TEST) -timeout 45m -count 1 -tags integration -run Integration $$(go list -tags integration ./... | grep -v -e /test/ -e /repositoryserver$$)

# The long trials and the fuzz targets are found by their names: TestIntegrationSoak…
# behind the build tag soak, and Fuzz…. On the cluster, the tag makes the specs with the
# label soak longer.
.PHONY: soak
soak: need-cc tools cluster images deploy ## The trials of minutes and hours: long cuts, leaks, large data, each fuzz target for FUZZTIME=5m.
	@$(GO_TEST) -timeout 90m -tags e2e,soak -count 1 ./test/e2e -args -ginkgo.v -ginkgo.label-filter=soak
	@$(GO_TEST) -timeout 6h -count 1 -tags integration,soak -run Soak -v $$(go list -tags integration,soak ./... | grep -v /test/)
	@git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/:func / /' | while read -r file target; do \
	  echo "== $$target"; \
	  go test -tags integration -run '^$$' -fuzz "^$$target\$$" -fuzztime $(or $(FUZZTIME),5m) "./$${file%/*}" </dev/null; \
	done

.PHONY: e2e
e2e: need-cc cluster images deploy ## The demo's flow and its failures, asserted on a real kind cluster.
	@$(GO_TEST) -timeout 40m -tags e2e -count 1 ./test/e2e -args -ginkgo.v=$(or $(V),0)

.PHONY: bench
bench: bench-data cluster images deploy ## Speed and memory; compare figures of one run only.
	@go test -run '^$$' -bench . -benchtime 3x -benchmem ./repositoryserver
	@GOGC=400 go test -run '^$$' -bench . -benchtime 3s -benchmem ./webhook/...
	@go test -tags integration -run '^$$' -bench . -benchtime 30x ./pkg/actionset
	@go run ./test/podstart
	@go run ./test/backuptime

.PHONY: bench-data
bench-data: tools ## The data path against kopia and restic, without a cluster; BENCH_SCALE=0.1 is quick.
	@go run ./test/bench $(BENCH_FLAGS)

.PHONY: golden
golden: ## Refresh the expected pods of the injector; read the diff.
	@go test ./webhook/render -run TestGolden -update

.PHONY: need-cc
need-cc:
	@command -v $${CC:-cc} >/dev/null || { echo "no C compiler: the race detector needs one (apt-get install gcc)" >&2; exit 1; }

##@ Checks

.PHONY: checks
checks: fmt-check vet lint generate-check tidy-check ## Format, vet, lint, generated files and go.mod clean.
	@echo "checks passed"

.PHONY: fmt-check
fmt-check:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt these: $$bad" >&2; exit 1; }

.PHONY: vet
vet:
	@go vet -tags integration,e2e,soak ./...

.PHONY: lint
lint:
	@go tool staticcheck -tags integration,e2e,soak ./...

.PHONY: generate
generate: ## Deep copies and CRDs from the API types.
	@go tool controller-gen object:headerFile=hack/boilerplate.go.txt paths=./pkg/apis/...
	@go tool controller-gen crd:allowDangerousTypes=true paths=./pkg/apis/... output:crd:dir=manifests/crds

.PHONY: generate-check
generate-check: generate
	@git diff --exit-code --stat -- pkg/apis manifests/crds || { echo "generated files were stale: commit what 'make generate' made" >&2; exit 1; }

.PHONY: tidy-check
tidy-check:
	@go mod tidy -diff >/dev/null || { echo "go.mod is not tidy: run 'go mod tidy'" >&2; exit 1; }

##@ Cluster

.PHONY: deploy
deploy: ## Controller, webhook and CRDs from manifests/ onto the cluster.
	@go run ./test/deploy
