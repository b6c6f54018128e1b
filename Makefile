# Few targets; each does its own set-up. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BINARIES := assay assay-observer assay-executor assay-planner assay-releaser assay-log assayd ec
export GOTOOLCHAIN := local

help:          ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup:         ## install what building needs of Debian, saying so
	@./tools/setup

# The flags are those of `go test`, so that tests and programs share what is
# compiled; only assay-task, which runs in an image without a libc, is static.
build: setup   ## everything into bin/
	@mkdir -p bin
	@for b in $(BINARIES); do echo "build $$b" >&2; \
	  go build -ldflags '-s -w' -o bin/$$b ./cmd/$$b || exit 1; done
	@echo "build assay-task" >&2; CGO_ENABLED=0 go build -ldflags '-s -w' -o bin/assay-task ./cmd/assay-task
	@echo "build runc" >&2; cd tools/runc && go build -tags seccomp -ldflags '-s -w' -o ../../bin/runc github.com/opencontainers/runc

control-plane: ## etcd, kube-apiserver and kubectl, for `assayd up` on one machine
	@eval "$$(tools/peers etcd kube-apiserver kubectl)" && mkdir -p bin && \
	  cp -f "$$ASSAY_ETCD" bin/etcd && cp -f "$$ASSAY_KUBE_APISERVER" bin/kube-apiserver && cp -f "$$ASSAY_KUBECTL" bin/kubectl

demo: build    ## rebuild yq from a git commit, gate it, release it; then see a forgery refused
	@go run ./examples/demo

test: build    ## the tests
	@go test ./...

test-all: build ## the tests, the slow suites, the attacks, the peers; as root
	@eval "$$(tools/peers)" && export ASSAY_SLOW=1 && \
	  echo "the sandbox's suites have the machine to themselves: runsc races with it" >&2 && \
	  go test -timeout 20m ./sandbox/oci && \
	  go test -p 2 -timeout 40m $$(go list ./... | grep -v /sandbox/oci)

lint: setup    ## vet, format, and the repository's own rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	@go vet ./...
	@go test ./internal/repotest

bench: build   ## side by side, in one run; ASSAY_CHAINS, ASSAY_EC name Chains' controller and Conforma's ec
	@go run ./bench
	@go run ./bench/verify
	@go run ./bench/gate
	@eval "$$(tools/peers etcd kube-apiserver tekton-controller)" && go run ./bench/observer

clean:         ## remove what was built
	@rm -rf bin

.PHONY: help setup build control-plane demo test test-all lint bench clean
