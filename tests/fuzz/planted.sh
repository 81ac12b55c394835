#!/usr/bin/env bash
# Does every target find a bug? `plants/TARGET.patch` puts one into the code behind each target; this
# applies them to a copy of the sources, builds that, and gives each target 40 s and its hand-made
# seeds alone. What was found after how many seconds is printed, and what was not fails.
#
#   tests/fuzz/planted.sh [TARGET...]
#   tests/fuzz/planted.sh --check            only: do the plants still fit the sources?
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cd "$here/../.."
# Never the folder of run.sh: cargo takes the copy for the same packages and would hand out its crates,
# planted bugs and all, as fresh.
target_dir="$PWD/target/fuzz-planted"
copy="$target_dir/sources" out="$target_dir/found"
triple="$(rustc -vV | sed -n 's/^host: //p')"
seconds="${FUZZ_SECONDS:-40}"
command -v patch >/dev/null || { echo "planted.sh needs patch (apt install patch)"; exit 2; }

names() { cut -d' ' -f1 "$here/targets.txt"; }
check=0
[ "${1:-}" != --check ] || { check=1; shift; }
[ $# -gt 0 ] || set -- $(names)

rm -rf "$copy"
mkdir -p "$copy" "$out"
git ls-files -z | tar --null -T - -cf - | tar -C "$copy" -xf -
for name in "$@"; do
    patch -d "$copy" -p1 -s --fuzz=2 --no-backup-if-mismatch <"$here/plants/$name.patch" ||
        { echo "plants/$name.patch does not fit any more: plant another bug"; exit 1; }
done
# Newer than what was built of other plants.
find "$copy" -name '*.rs' -exec touch {} +
[ "$check" = 0 ] || { echo "$# plants fit"; exit 0; }

FUZZ_TARGET_DIR="$target_dir" FUZZ_BUILD_ONLY=1 "$copy/tests/fuzz/run.sh" "$@"

[ -d /dev/shm ] && [ -w /dev/shm ] && export TMPDIR=/dev/shm
export ASAN_OPTIONS="detect_leaks=0"
failed=0
for name in "$@"; do
    work="$out/$name"
    rm -rf "$work"
    mkdir -p "$work/corpus"
    cp "$here/corpora/$name"/seed-* "$work/corpus/"
    dict=()
    [ -f "$here/dictionaries/$name.dict" ] && dict=(-dict="$here/dictionaries/$name.dict")
    max_len="$(sed -n "s/^$name //p" "$here/targets.txt")"
    began="$(date +%s.%N)"
    if "$target_dir/$triple/fuzz/fuzz-${name//_/-}" "$work/corpus" -max_total_time="$seconds" -max_len="$max_len" -timeout=10 \
        -rss_limit_mb=1024 -use_value_profile=1 -artifact_prefix="$work/" "${dict[@]}" >"$work/log" 2>&1; then
        printf '%-14s NOT FOUND in %s s: %s\n' "$name" "$seconds" "$(head -1 "$here/plants/$name.patch")"
        failed=1
    else
        printf '%-14s %5.1f s  %s\n' "$name" "$(awk "BEGIN { print $(date +%s.%N) - $began }")" \
            "$(grep -aoE "panicked at [^ ]+" "$work/log" | head -1)"
    fi
done
[ "$failed" = 0 ] || { echo "a target does not find its bug"; exit 1; }
echo "each of $# targets found its bug"
