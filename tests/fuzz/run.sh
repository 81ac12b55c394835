#!/usr/bin/env bash
# Fuzzes every target, or those named: libFuzzer with AddressSanitizer, a time box each.
#
#   tests/fuzz/run.sh [TARGET...]            40 s each, two at a time
#   FUZZ_SECONDS=600 tests/fuzz/run.sh       the long round
#   FUZZ_JOBS=1                              one at a time
#   FUZZ_MERGE=1                             afterwards, what is new goes into the committed corpora
#
# Coverage flags are stable; the sanitizer wants RUSTC_BOOTSTRAP=1. One cargo call builds all targets
# in a target folder of their own. A finding ends with its path and exit code 1: run the target's
# program with that path to see it again.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cd "$here/../.."
seconds="${FUZZ_SECONDS:-40}" jobs="${FUZZ_JOBS:-2}"
target_dir="${FUZZ_TARGET_DIR:-$PWD/target/fuzz}"
triple="$(rustc -vV | sed -n 's/^host: //p')"
work="$target_dir/work"
mkdir -p "$work"

names() { cut -d' ' -f1 "$here/targets.txt"; }
max_len() { sed -n "s/^$1 //p" "$here/targets.txt"; }
program() { echo "$target_dir/$triple/fuzz/fuzz-${1//_/-}"; }

[ $# -gt 0 ] || set -- $(names)
bins=()
for name in "$@"; do
    [ -n "$(max_len "$name")" ] || { echo "no target $name; there are: $(names | tr '\n' ' ')"; exit 2; }
    bins+=(--bin "fuzz-${name//_/-}")
done

passes="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
passes+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
passes+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# A target of its own spares build scripts the sanitizer.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="$passes -Zsanitizer=address -Ccodegen-units=16" CARGO_TARGET_DIR="$target_dir" \
    cargo build --quiet --profile fuzz --target "$triple" -p ringseed-fuzz --features libfuzzer "${bins[@]}"
[ "${FUZZ_BUILD_ONLY:-0}" = 0 ] || exit 0

# Files of targets that need them lie in memory, where there is such a place.
[ -d /dev/shm ] && [ -w /dev/shm ] && export TMPDIR=/dev/shm
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=0:exitcode=77"

# One target: new inputs go to a scratch corpus, findings beside it.
fuzz() {
    local name="$1" found="$work/$1/found" corpus="$work/$1/corpus" log="$work/$1/log"
    rm -rf "$found"
    mkdir -p "$found" "$corpus"
    local dict=()
    [ -f "$here/dictionaries/$name.dict" ] && dict=(-dict="$here/dictionaries/$name.dict")
    local began=$SECONDS verdict=0
    nice -n 10 "$(program "$name")" "$corpus" "$here/corpora/$name" \
        -max_total_time="$seconds" -max_len="$(max_len "$name")" -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=64 -use_value_profile=1 -artifact_prefix="$found/" -print_final_stats=1 \
        "${dict[@]}" >"$log" 2>&1 || verdict=$?
    local runs
    runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    if [ "$verdict" -ne 0 ] || [ -n "$(ls "$found")" ]; then
        printf '%-14s FAILED after %s s: %s\n' "$name" "$((SECONDS - began))" "$(ls -d "$found"/* 2>/dev/null | head -1)"
        grep -aE -m3 -A3 'panicked at|ERROR: ' "$log" || tail -5 "$log"
        return 1
    fi
    printf '%-14s ok, %s runs in %s s\n' "$name" "${runs:-?}" "$((SECONDS - began))"
}

merge() {
    mkdir -p "$here/corpora/$1" "$work/$1/merged"
    rm -f "$work/$1/merged"/*
    "$(program "$1")" -merge=1 -max_len="$(max_len "$1")" "$work/$1/merged" "$here/corpora/$1" \
        "$work/$1/corpus" >"$work/$1/merge.log" 2>&1
    # A few KiB: the smallest inputs, which libFuzzer took first.
    ls -Sr "$work/$1/merged" | head -n "${FUZZ_KEEP:-60}" | while read -r input; do
        cp -n "$work/$1/merged/$input" "$here/corpora/$1/"
    done
}

failed=0 running=0
for name in "$@"; do
    mkdir -p "$here/corpora/$name"
    if [ "$running" -ge "$jobs" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    fuzz "$name" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
if [ "${FUZZ_MERGE:-0}" != 0 ]; then
    for name in "$@"; do merge "$name"; done
fi
[ "$failed" = 0 ] || { echo "fuzzing found something: see the paths above"; exit 1; }
echo "fuzzed $# targets, $seconds s each: no finding"
