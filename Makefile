# tcc: every command does its own set-up.
.PHONY: model
model:
	cargo run --release --locked --quiet -p tcc-model
