# One line each; `just --list` shows them.

test:
    cargo test
ci:
    .ci/run
lint:
    cargo fmt --all -- --check && cargo clippy --locked --all-targets -- -D warnings && for features in "" store client; do cargo clippy --locked --no-default-features --features "$features" --lib -- -D warnings || exit 1; done
loom:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --no-default-features --lib --release -- loom_
shuttle:
    RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --no-default-features --lib --release -- shuttle_
sim seeds="0..10000":
    MILLSTREAM_SIM_SEEDS={{seeds}} cargo test --release --lib sim:: -- --nocapture
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
