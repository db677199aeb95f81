#!/usr/bin/env bash
# Runs each fuzz target for a bounded number of executions: run.sh [FACTOR] [TARGET…]. FACTOR, such as 0.1, multiplies the
# numbers below.
# Prints executions per target. What crashes lies in tests/fuzz/artifacts/ and ends the run with 1.
set -euo pipefail
cd "$(dirname "$0")"

factor=${1:-1}
shift || true
# Fast targets do most of the work. The order is that of what a stranger's bytes meet first.
declare -A runs=(
	[jpeg]=150000 [png]=200000 [webp]=150000 [bmp]=400000 [gif]=150000 [image]=150000
	[protocol]=4000000 [rle]=3000000 [manifest]=1000000 [keys]=1500000 [graph]=1000000
)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(jpeg png webp bmp gif image protocol rle manifest graph keys)

version=0.13.2
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
	cargo install --quiet --locked --version "$version" --root "$tools" cargo-fuzz
fi
# Instrumentation is a compiler's unstable option; this lets the stable compiler take it.
export RUSTC_BOOTSTRAP=1
# Leaks are looked for by growth: libjpeg's errors unwind past C frames, which the leak checker does not follow.
export ASAN_OPTIONS=detect_leaks=0

mkdir -p corpus artifacts
cargo fuzz build --fuzz-dir .
total=0
failed=0
for target in "${targets[@]}"; do
	count=$(awk -v runs="${runs[$target]}" -v factor="$factor" 'BEGIN { printf "%d", runs * factor }')
	mkdir -p "corpus/$target"
	cp -n "seeds/$target"/* "corpus/$target/"
	case $target in
		manifest) cp -n ../../models/demo/backbone.toml ../../models/demo/heads/*/head.toml "corpus/$target/" 2>/dev/null || true ;;
	esac
	log=artifacts/$target.log
	start=$(date +%s)
	if ! nice -n 10 cargo fuzz run --fuzz-dir . "$target" "corpus/$target" -- \
		-runs="$count" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1 \
		>"$log" 2>&1; then
		failed=1
		echo "$target: FAILED, see tests/fuzz/$log"
	fi
	done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
	rss=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log" | tail -1)
	printf '%-10s %9d executions, %4d s, peak %s MB, corpus %d files\n' \
		"$target" "${done:-0}" $(($(date +%s) - start)) "${rss:-?}" "$(find "corpus/$target" -type f | wc -l)"
	total=$((total + ${done:-0}))
done
echo "$total executions in all"
exit $failed
