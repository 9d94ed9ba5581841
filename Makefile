# tcc: every target does its own set-up.
#
#   make demo               schedule, cancel, pay, kill, recover: on three throw-away PostgreSQL servers
#   make demo INPUT=FILE    the same on a CSV of orders (order,payer,payee,amount,...)
#   make test               every test
#   make model              the exhaustive search of the protocol
#   make sim SEEDS=200      the engine in simulated worlds where everything fails (sim-nightly: a million transactions)
#   make seeded-bugs        twelve mistakes that others have made, put into those worlds: each must be noticed
#   make chaos SECONDS=60   real servers and processes in which everything fails (SEED=1: what, in which order)
#   make bench              measures against plain PostgreSQL: target/bench/report.html (bench-quick: a part of it)
#   make lint               formatting, clippy and documentation, warnings are errors

CARGO ?= cargo
.PHONY: demo test model sim sim-nightly seeded-bugs chaos bench bench-quick lint setup

setup:
	@coordinator/ops/ensure-postgres

demo: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-ctl -p tcc-tests --bins
	@target/release/tcc-demo $(if $(INPUT),--input $(INPUT))

test: setup
	@coordinator/ops/ensure-grpcurl
	@coordinator/ops/ensure-promtool
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace

model:
	@$(CARGO) run --release --locked --quiet -p tcc-model

SEEDS ?= 200
FIRST ?= 1
sim:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeds $(SEEDS) --first $(FIRST)

sim-nightly:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeds 6000 --first $(FIRST) --no-empty-cell

seeded-bugs:
	@$(CARGO) run --release --locked --quiet -p tcc-sim -- --seeded-bugs

SECONDS ?= 60
SEED ?= 1
chaos: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-tests --bins
	@target/release/tcc-chaos --seconds $(SECONDS) --seed $(SEED)

bench bench-quick: setup
	@$(CARGO) build --release --locked -p tcc-coordinator -p tcc-tests --bins
	@target/release/tcc-bench $(if $(filter bench,$@),all,quick)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
