# Two commands do everything on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
RUNTIME := target/onnxruntime/libonnxruntime.so
# JPEG decoding is built with SIMD where this is there.
export PATH := $(CURDIR)/target/nasm/bin:$(PATH)
export ORT_DYLIB_PATH := $(CURDIR)/$(RUNTIME)
export ORT_DISABLE_TELEMETRY := 1
export ORT_TELEMETRY_DISABLED := 1

comma := ,
# $(call step,what,command): says what runs and how long it took.
step = @printf '== %s\n' '$(1)'; start=$$(date +%s%N); $(2); \
	printf '== %s: %d.%01d s\n' '$(1)' $$((($$(date +%s%N) - start) / 1000000000)) $$((($$(date +%s%N) - start) / 100000000 % 10))

.PHONY: demo-real bench-observability reference test-rules gpu-kit help demo serve test test-rust test-python test-models study lint fmt runtime build check bench soak load clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

runtime: ## Fetch the pinned ONNX Runtime library and OpenVINO's plugin, if they are not there
	$(call step,ONNX Runtime library,deploy/fetch_onnxruntime.sh $(dir $(RUNTIME)) $(PYTHON))

.PHONY: nasm
nasm:
	@deploy/fetch_nasm.sh target/nasm

build: runtime nasm ## Build the release binary
	$(call step,build,cargo build --release --locked --quiet)

demo: build ## Set up, build, and run every demo head on the sample images and clips
	$(call step,demo,deploy/demo.sh target/release/frostline target/demo)

demo-real: build models/.venv/ready ## Build, serve and measure pretrained weights that come inside packages (models/REAL.md)
	$(call step,demo of real weights,models/.venv/bin/frostline-models real --work target/real --binary target/release/frostline)

serve: build ## Leave a server with the demo models running on 127.0.0.1:8461
	@target/release/frostline serve

check: build ## Check the embedded models and measure them on this machine
	$(call step,check,target/release/frostline check)

test: test-rust test-python test-clients deploy-test test-models test-rules ## Run all tests

test-rust: runtime nasm
	$(call step,rust tests,cargo test --locked --quiet)

tests/.venv/ready: tests/requirements.txt tests/requirements-alone.txt
	$(call step,python environment,$(PYTHON) -m venv tests/.venv \
		&& tests/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
		&& tests/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements-alone.txt \
		&& touch $@)

# The binary is the one that the Rust tests built.
test-python: test-rust tests/.venv/ready
	$(call step,reference tests,tests/.venv/bin/python -m pytest -q tests/reference)
	$(call step,attacks,tests/.venv/bin/python -m pytest -q tests/attack)

tests/.venv/clients: tests/.venv/ready deploy/clients/python/pyproject.toml deploy/clients/python/tests/requirements.txt
	$(call step,client environment,tests/.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=compat -e deploy/clients/python -r deploy/clients/python/tests/requirements.txt && touch $@)

# The Python client as it is installed, and the examples in Python and Go; those of grpcurl, ghz and grpc-health-probe
# where these are built.
.PHONY: test-clients
test-clients: test-rust tests/.venv/clients
	$(call step,client tests,tests/.venv/bin/python -m pytest -q deploy/clients/python/tests)

.PHONY: examples-test
examples-test: ## Build grpcurl, ghz and grpc-health-probe and run the client tests with them
	$(call step,tools,deploy/install_tools.sh grpcurl ghz grpc-health-probe)
	@$(MAKE) --no-print-directory test-clients

.PHONY: deploy-test
deploy-test: test-rust tests/.venv/ready ## Three servers behind Envoy, and all manifests against their schemas
	$(call step,deployment tests,tests/.venv/bin/python -m pytest -q tests/deploy)

.PHONY: balance-test
balance-test: build tests/.venv/ready ## Kill, drain and roll three servers behind Envoy, HAProxy and nginx
	$(call step,balancers,deploy/balancer/install.sh)
	$(call step,balance test,FROSTLINE_BINARY=target/release/frostline tests/.venv/bin/python tests/deploy/balance.py)

.PHONY: image-test
image-test: ## Build the CPU container image and run it without privileges
	$(call step,image test,deploy/image-test.sh cpu)

models/.venv/ready: models/pyproject.toml
	$(call step,models environment,$(PYTHON) -m venv models/.venv \
		&& models/.venv/bin/python -m pip install --quiet --disable-pip-version-check -e "models[test]" \
		&& models/install_font.sh && touch $@)

# Repositories are checked and served by the binary that the Rust tests built.
test-models: test-rust models/.venv/ready
	$(call step,models tests,cd models && .venv/bin/python -m pytest)

study: models/.venv/ready ## Run the study of frozen backbones (hours; resumes where it stopped); writes models/STUDY.md
	$(call step,study,models/.venv/bin/frostline-models study)

reference: build ## Write deploy/REFERENCE.md, models/MANIFEST.md and its schemas from the code
	@target/release/frostline reference > deploy/REFERENCE.md
	@target/release/frostline reference manifest > models/MANIFEST.md
	@mkdir -p models/schema
	@$(PYTHON) deploy/helm/config_schema.py target/release/frostline
	@for of in backbone head; do target/release/frostline reference $$of-schema > models/schema/$$of.schema.json; done

# The binary is the one that the Rust tests built.
test-rules: test-rust ## Check the Prometheus configuration, rules and metrics with promtool, and run the rules' unit tests
	$(call step,promtool,deploy/observability/tools.sh target/observability \
		&& cd deploy/observability && ../../target/observability/promtool check config prometheus.yml \
		&& ../../target/observability/promtool test rules rules.test.yml)
	$(call step,metrics,PYTHON=$(PYTHON) deploy/observability/check_metrics.sh target/debug/frostline target/observability/promtool)

.PHONY: corpus
corpus: tests/.venv/ready ## Decode 1,600 pictures that come with packages and compare with Pillow (fetches them)
	$(call step,decoder,cargo build --locked --quiet --example decode)
	$(call step,corpus,tests/.venv/bin/python tests/corpus/run.py target/corpus)

.PHONY: fuzz
fuzz: ## Fuzz the decoders, the protocol, manifests, masks and keys: about 10 million executions
	@tests/fuzz/run.sh

.PHONY: attack
attack: $(if $(FROSTLINE_BINARY),runtime,build) tests/.venv/ready ## Attack a server in some 90 ways; a good caller beside it and probes must not notice (40 minutes; ATTACKS="a b" for some)
	@FROSTLINE_BINARY=$${FROSTLINE_BINARY:-target/release/frostline} tests/.venv/bin/python tests/attack/attack.py $(ATTACKS)

bench: runtime nasm ## Measure throughput, overhead, tail, overload and lifecycle; writes target/bench/summary.json (minutes)
	$(call step,bench,cargo bench --locked --quiet --bench serving -- $(SECTIONS))

soak: runtime nasm ## Put a million requests on a server and compare its memory
	$(call step,soak,cargo bench --locked --quiet --bench serving -- soak)

load: build ## Run the ghz loads of tests/load against a server; keeps plots in target/load (needs Go)
	$(call step,load,tests/load/run.sh target/release/frostline target/load)

.PHONY: drill
drill: build tests/.venv/ready ## Let go wrong what goes wrong in production, and see which alerts fire (five minutes)
	$(call step,drill,FROSTLINE_BINARY=$(CURDIR)/target/release/frostline tests/.venv/bin/python tests/drill/drill.py target/drill.log)

.PHONY: release
release: build tests/.venv/ready ## Make a release dry, in target/release-VERSION; PUBLISH=1 tags, pushes and signs
	$(call step,release,PYTHON=tests/.venv/bin/python deploy/release/release.sh $(if $(PUBLISH),,--dry))

.PHONY: wheel
wheel: build tests/.venv/ready ## Pack the server as a wheel into target/wheel
	$(call step,wheel,tests/.venv/bin/python deploy/release/wheel.py target/release/frostline target/wheel)

gpu-kit: ## Pack what measures on a GPU host without a network into target/gpu-kit
	$(call step,gpu kit,tests/gpu/prepare.sh target/gpu-kit $(PYTHON))

bench-observability: build tests/.venv/ready ## Compare a server that tells everything with one that tells nothing
	@tests/.venv/bin/python tests/bench/observability.py target/release/frostline

# What the protocol must stay compatible with: the last release, or what is committed where there was none.
PROTOCOL_BASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo HEAD)

lint: ## Check format, lints, the protocol's style and that it breaks no caller
	$(call step,fmt,cargo fmt --check)
	$(call step,clippy,cargo clippy --locked --quiet --all-targets -- -D warnings)
	$(call step,protocol,npx --yes --package @bufbuild/buf@1.75.0 buf lint proto)
	$(call step,compatibility,npx --yes --package @bufbuild/buf@1.75.0 buf breaking proto \
		--against '.git#ref=$(PROTOCOL_BASE)$(comma)subdir=proto')

fmt: ## Format the code
	cargo fmt

clean: ## Remove everything that was built
	rm -rf target tests/.venv models/.venv
