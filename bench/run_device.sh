#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests, checks and measures winnow on a machine with a GPU:
#
#     bench/run_device.sh OUTPUT [CMake arguments...]
#
# builds a Release tree for one architecture, runs the device tests, runs them again (smaller ones)
# under compute-sanitizer's four tools, runs the benchmarks, and PyTorch's calls on the same work where
# PyTorch is, and leaves in the folder OUTPUT a log of each step and a JSON file of each benchmark. The
# last lines it prints are a summary; it exits 1 if a step failed. Environment:
#
#     WINNOW_SUITES     which parts, by name: "partition selection attention_forward
#                       attention_backward" is the default
#     WINNOW_BINARIES   a folder with the programs already built: nothing is built then
#     WINNOW_BUILD      the build folder (build-device)
#     WINNOW_WORKLOADS  folder of recorded LiDAR scans; without it the benchmarks simulate some, and
#                       the tests of recorded ones are skipped
#     CUDAARCHS         the architecture (90)
#
# GoogleTest and Google Benchmark may come from a prefix: -DCMAKE_PREFIX_PATH=...
# With -DCMAKE_CUDA_FLAGS=-DWINNOW_ALL_LANES_ARRIVE racecheck can follow contextual cubic windows, and long
# and spherical ones on compute capability 9.0, which are then slower (wgmma.cuh); without it gradients of
# long windows are left out.
set -uo pipefail
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { sed -n '3,23p' "${BASH_SOURCE[0]}"; exit 2; }
output=$(mkdir -p "$1" && cd "$1" && pwd)
shift
suites=${WINNOW_SUITES:-partition selection attention_forward attention_backward}
build=${WINNOW_BUILD:-$source_folder/build-device}
failed=0

# What a suite consists of: test programs, benchmark programs, and the tests that are too slow under a
# checker.
tests_of() {
  case $1 in
    partition)
      echo partition_device_test partition_contract_device_test partition_lists_device_test \
        partition_workload_device_test ;;
    selection) echo selection_device_test ;;
    attention_forward) echo attention_forward_device_test ;;
    attention_backward) echo attention_backward_device_test calls_device_test ;;
    *) echo "unknown suite: $1" >&2 && exit 2 ;;
  esac
}
benchmarks_of() { echo "$1_bench"; }
too_slow() {
  case $1 in
    partition_device_test) echo '-large*:*a_long*:*on_cell*:*all_tokens_in_one*' ;;
    partition_workload_device_test | calls_device_test) echo '-*' ;;
    selection_device_test) echo '-device_ranking*:device_importance.equals*' ;;
    attention_backward_device_test)
      echo '-*MatchesReference*:*FiftyThousand*:*AHundred*:*BesideOtherWork*:*InTheirWindow*:*Training*'\
':*RepeatsScans*' ;;
    attention_forward_device_test)
      echo '-*MatchesReference*:*FiftyThousand*:*AMillion*:*BesideOtherWork*:*InTheirWindow*'\
':*OfAllSizes*' ;;
    *) echo '*' ;;
  esac
}

# step NAME COMMAND...: runs it into OUTPUT/NAME.log and reports the outcome.
step() {
  local name=$1 code
  shift
  "$@" >"$output/$name.log" 2>&1
  code=$?
  if [ $code -eq 0 ]; then
    echo "ok      $name"
  else
    failed=1
    echo "FAILED  $name (exit code $code), see $output/$name.log"
  fi
  return $code
}

if [ -n "${WINNOW_BINARIES:-}" ]; then
  program() { echo "$WINNOW_BINARIES/$1"; }
else
  program() { find "$build" -type f -name "$1" -perm -u+x | head -n 1; }
  targets=()
  for suite in $suites; do targets+=($(tests_of "$suite") $(benchmarks_of "$suite")); done
  targets+=(winnow_write_scans)
  step configure cmake -S "$source_folder" -B "$build" -DCMAKE_BUILD_TYPE=Release -DWINNOW_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="${CUDAARCHS:-90}" "$@" || exit 1
  step build cmake --build "$build" --parallel --target "${targets[@]}" || exit 1
fi

for suite in $suites; do
  for name in $(tests_of "$suite"); do
    step "$name" timeout 300 "$(program "$name")"
    sed -n 's/^\[  SKIPPED \] \([0-9]* test\).*listed below.*/          skipped: \1s/p' "$output/$name.log"
  done
done

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    # Tests copy whole arrays, of which kernels write only what there is.
    options=(--tool $tool --error-exitcode 9)
    [ $tool = initcheck ] && options+=(--check-api-memory-access no)
    for suite in $suites; do
      for name in $(tests_of "$suite"); do
        filter=$(too_slow "$name")
        [ "$filter" = '-*' ] && continue
        [ $tool = racecheck ] && [[ $* != *WINNOW_ALL_LANES_ARRIVE* ]] &&
          filter+=':*DifferentiatesInLongWindows*'
        WINNOW_TEST_BARE=1 step "$tool-$name" timeout 300 compute-sanitizer "${options[@]}" \
          "$(program "$name")" --gtest_filter="$filter"
      done
    done
  done
else
  echo "skipped: compute-sanitizer is not installed"
fi

export WINNOW_COMMIT=${WINNOW_COMMIT:-$(git -C "$source_folder" rev-parse --short HEAD 2>/dev/null)}
for suite in $suites; do
  for name in $(benchmarks_of "$suite"); do
    step "$name" timeout 300 "$(program "$name")" --benchmark_out="$output/$name.json" \
      --benchmark_out_format=json && grep -E '/manual_time|^skipped' "$output/$name.log" |
      sed 's,/iterations:1/manual_time,,' | cut -c 1-150
  done
done
if [[ $suites == *attention_forward*attention_backward* ]] && python3 -c 'import torch' 2>/dev/null; then
  scans=${WINNOW_WORKLOADS:-$output/scans}
  if [ -z "${WINNOW_WORKLOADS:-}" ]; then step write_scans "$(program winnow_write_scans)" "$scans"; fi
  step compare_pytorch timeout 300 python3 "$source_folder/bench/compare_pytorch.py" \
    --winnow-bench "$(program attention_forward_bench)" \
    --winnow-bench "$(program attention_backward_bench)" --workloads "$scans" \
    --out "$output/pytorch.json" && cat "$output/compare_pytorch.log"
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
[ $failed -eq 0 ] && echo "all steps passed" || echo "some steps FAILED"
exit $failed
