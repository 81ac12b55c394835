#!/usr/bin/env bash
# AddressSanitizer over everything unsafe that runs under it: the hash kernels, the arena and its
# buffers, checked maps, the ring. `.ci/run` calls it; RINGSEED_HASH_CASES says how much is hashed.
set -euo pipefail
cd "$(dirname "$0")/.."
triple="$(rustc -vV | sed -n 's/^host: //p')"
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$PWD/target/asan"
export RINGSEED_HASH_CASES="${RINGSEED_HASH_CASES:-4000}"
# The tests of whole folders use their own child processes and signals; leaks are no business here.
export ASAN_OPTIONS="detect_leaks=0:handle_segv=0:handle_sigbus=0:allow_user_segv_handler=1"
cargo test --quiet --target "$triple" -p ringseed-sys --lib "$@"
