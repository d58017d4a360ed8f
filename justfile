# One line each; `just --list` shows them.

test:
    cargo test
ci:
    .ci/run
lint:
    cargo fmt --all -- --check && cargo clippy --all-targets -- -D warnings
loom:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --no-default-features --lib --release -- loom_
fuzz target="frame" seconds="60":
    cargo +nightly fuzz run {{target}} -- -max_total_time={{seconds}}
bench name="append":
    cargo bench --bench {{name}}
bench-http:
    benches/http.sh
deny:
    cargo deny check
serve:
    cargo run --release -- serve
