# tcc: every target does its own set-up.
#
#   make demo               schedule, cancel, pay, kill, recover: on three throw-away PostgreSQL servers
#   make demo INPUT=FILE    the same on a CSV of orders (order,payer,payee,amount,...)
#   make demo-payout        money that leaves through an API that fails in every way, while everything is killed in turn
#   make test               every test
#   make conformance        the conformance kit against every participant here, and against five that are broken
#   make model              the exhaustive search of the protocol
#   make sim SEEDS=200      the engine in simulated worlds where everything fails (sim-nightly: a million transactions)
#   make seeded-bugs        twelve mistakes that others have made, put into those worlds: each must be noticed
#   make chaos SECONDS=60   real servers and processes in which everything fails (SEED=1: what, in which order)
#   make recovery           how long it takes until all is as before, after one fault at a time
#   make mutants            mistakes put into the protocol, the ledger's rules and their guards: a test must fail for each
#   make fuzz N=1000000     random requests: each is taken or told what is wrong, and never INTERNAL
#   make bench              measures against plain PostgreSQL: target/bench/report.html (bench-quick: a part of it)
#   make lint               formatting, clippy and documentation, warnings are errors
#   make lint-proto         the proto files: buf's STANDARD rules, and that no client breaks (BASE=REF: built from which)

CARGO ?= cargo
.PHONY: demo demo-payout test conformance model sim sim-nightly seeded-bugs chaos recovery mutants fuzz bench bench-quick lint lint-proto setup

setup:
	@coordinator/ops/ensure-postgres

demo: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-ctl -p tcc-tests --bin tccd --bin tccctl --bin tcc-demo
	@target/release/tcc-demo $(if $(INPUT),--input $(INPUT))

PAYOUTS ?= 300
demo-payout: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-ctl -p tcc-payout -p tcc-tests \
		--bin tccd --bin tccctl --bin tcc-payout --bin tcc-risk --bin tcc-stub-payouts --bin tcc-demo-payout
	@target/release/tcc-demo-payout --payouts $(PAYOUTS) --seed $(SEED)

# The tests' servers stand in memory where there is room for it: nothing in them has to outlive the machine. They begin with
# databases that are made once. Most tests wait most of the time: four at a time.
ROOM = $$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
test: setup
	@coordinator/ops/ensure-grpcurl
	@coordinator/ops/ensure-promtool
	@coordinator/ops/ensure-shells
	@coordinator/ops/ensure-faketime
	@coordinator/ops/ensure-python
	$(CARGO) build --locked --workspace --bins
	@[ "0$(ROOM)" -lt 8000000 ] || export TMPDIR=/dev/shm; \
	export TCC_TEMPLATE=$$(mktemp -d) && trap 'rm -rf "$$TCC_TEMPLATE"' EXIT && \
	target/debug/tcc-template "$$TCC_TEMPLATE" && \
	RUST_TEST_THREADS=4 $(CARGO) test --locked --workspace --no-fail-fast

conformance: setup
	@coordinator/ops/ensure-python
	@$(CARGO) run --locked --quiet -p tcc-tests --bin tcc-conformance

model:
	@$(CARGO) run --release --locked --quiet -p tcc-model

SEEDS ?= 200
FIRST ?= 1
sim:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeds $(SEEDS) --first $(FIRST)

sim-nightly:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeds 5200 --first $(FIRST) --no-empty-cell

seeded-bugs:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeded-bugs

SECONDS ?= 60
SEED ?= 1
chaos: setup
	@coordinator/ops/ensure-faketime
	@coordinator/ops/ensure-python
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-tests --bin tccd --bin tcc-ledgerd --bin tcc-seats --bin tcc-chaos
	@target/release/tcc-chaos --seconds $(SECONDS) --seed $(SEED)

recovery: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-tests --bin tccd --bin tcc-chaos
	@target/release/tcc-chaos --recovery

# A change by which a test never ends is noticed as well: cargo-mutants ends with 3 then.
mutants: setup
	@coordinator/ops/ensure-mutants
	@PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) mutants --output target/mutants || [ $$? = 3 ]
	@# What this one has to do is seen on a real table only.
	@PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) mutants --config tests/mutants/advance.toml \
		--output target/mutants/advance || [ $$? = 3 ]
	@tests/mutants/guards

N ?= 1000000
fuzz:
	@TCC_FUZZ=$(N) TCC_FUZZ_FIRST=$(FIRST) $(CARGO) test --release --locked --quiet -p tcc-coordinator --lib -- \
		--exact --nocapture fuzz::whatever_is_asked_is_taken_or_told_what_is_wrong

bench bench-quick: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-tests --bin tccd --bin tcc-ledgerd --bin tcc-bench
	@target/release/tcc-bench $(if $(filter bench,$@),all,quick) $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

lint-proto:
	@BASE=$(BASE) coordinator/ops/check-proto
