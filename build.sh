#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh Debian or Ubuntu to a demo or a test run; nothing else to know.
#
#   ./build.sh demo [winnow-eval options]   build winnow-eval and run it, on a simulated scan unless
#                                           told otherwise; writes a report.html and says where
#   ./build.sh test [ctest options]         build everything and run the tests
#   ./build.sh install PACKAGE...           install Debian packages that are missing
#
# The first two install what is missing (as root or through sudo), work without CUDA and without a
# GPU, and use them where they are. WINNOW_BUILD_DIR names the build folder (default: one in build/),
# WINNOW_CMAKE_OPTIONS further options for cmake.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

build_dir=${WINNOW_BUILD_DIR:-build}
jobs=$(nproc)

fail() {
  printf 'build.sh: %s\n' "$*" >&2
  exit 1
}

# install_missing PACKAGE...: Debian packages that are not there yet.
install_missing() {
  command -v dpkg-query >/dev/null ||
    fail "needs these packages, and only knows how to install them on Debian and Ubuntu: $*"
  local missing=() package
  for package in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0

  local as_root=()
  if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null ||
      fail "missing packages: ${missing[*]}. Neither root nor sudo is at hand; as root, run:
  apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  printf 'build.sh: installing %s\n' "${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

has_nvcc() { command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; }
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# configure CUDA [OPTION...]: CUDA is ON or OFF.
configure() {
  local cuda=$1 options=()
  shift
  if [[ $cuda == ON ]]; then
    if has_gpu; then
      options+=(-DCMAKE_CUDA_ARCHITECTURES=native)
    else
      # Nothing will run; one head dim shows that the device code compiles.
      options+=(-DWINNOW_HEAD_DIMS=16)
    fi
  fi
  cmake -S . -B "$build_dir" -DCMAKE_BUILD_TYPE=Release -DWINNOW_CUDA="$cuda" "${options[@]}" \
    "$@" ${WINNOW_CMAKE_OPTIONS:-} >"$build_dir.configure.log" 2>&1 || {
    cat "$build_dir.configure.log" >&2
    fail "configuring failed"
  }
  mv "$build_dir.configure.log" "$build_dir/configure.log"
}

tools=(cmake make g++ nlohmann-json3-dev libcli11-dev)

case ${1:-} in
  demo)
    shift
    install_missing "${tools[@]}"
    # Without a GPU the demo runs on the CPU and need not wait for device code to compile.
    if has_nvcc && has_gpu; then cuda=ON; else cuda=OFF; fi
    build_dir=${WINNOW_BUILD_DIR:-build/demo}
    mkdir -p "$build_dir"
    # Heads of 16 are the default of winnow-eval; kernels for others take minutes to compile.
    dims=(-DWINNOW_HEAD_DIMS=16)
    [[ " $* " != *" --head-dim"[\ =]* ]] || dims=(-UWINNOW_HEAD_DIMS)
    printf 'build.sh: building winnow-eval in %s, which takes a minute or two\n' "$build_dir"
    configure "$cuda" -DWINNOW_BUILD_TESTS=OFF -DWINNOW_BUILD_BENCH=OFF "${dims[@]}"
    cmake --build "$build_dir" -j "$jobs" --target winnow-eval
    report=(--report "$build_dir/report")
    [[ " $* " != *" --report"[\ =]* ]] || report=()
    exec "$build_dir/bench/winnow-eval" "${report[@]}" "$@"
    ;;
  test)
    shift
    install_missing "${tools[@]}" libgtest-dev libgmock-dev libbenchmark-dev python3-numpy
    if has_nvcc; then cuda=ON; else cuda=OFF; fi
    build_dir=${WINNOW_BUILD_DIR:-build/test}
    mkdir -p "$build_dir"
    # The system's Python is the one that has numpy now.
    configure "$cuda" -DWINNOW_BUILD_TESTS=ON -DWINNOW_BUILD_BENCH=ON \
      -DPython3_EXECUTABLE=/usr/bin/python3
    cmake --build "$build_dir" -j "$jobs"
    ctest --test-dir "$build_dir" --output-on-failure -j "$jobs" "$@"
    ;;
  install)
    shift
    install_missing "$@"
    ;;
  *)
    sed -n '3,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ ${1:-help} == help || ${1:-} == --help ]] || fail "unknown command: $1"
    ;;
esac
