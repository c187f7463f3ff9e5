// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the benchmark programs share: their main, what they say about their run, and benchmarks that
/// end with their own error instead of the program's.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "support/device_timing.cuh"
#include "support/scan_workload.hpp"

namespace winnow::bench {

/// `copy_bandwidth` of this run, measured once.
inline double measured_bandwidth() {
  static const double result = copy_bandwidth();
  return result;
}

/// A benchmark of times that `body(state)` sets; what it throws ends this benchmark and no other.
template <class Body>
void add_benchmark(const std::string& name, int iterations, Body&& body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 try {
                                   body(state);
                                 } catch (const std::exception& error) {
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->UseManualTime()
      ->Iterations(iterations)
      ->Unit(benchmark::kMicrosecond);
}

/// One time, and its ratio to the floor of the bytes that have to be moved; 0 bytes show no ratio.
inline void report_time(benchmark::State& state, double seconds, double floor_bytes) {
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(seconds);
  if (floor_bytes == 0.0) return;
  state.counters["floor_us"] = floor_bytes / measured_bandwidth() * 1e6;
  state.counters["ratio_to_floor"] = seconds * measured_bandwidth() / floor_bytes;
  state.counters["bytes_per_second"] = floor_bytes / seconds;
}

/// For suites that work on scans: says where they come from.
inline void add_scan_context() {
  benchmark::AddCustomContext("scans", support::workload_source());
}

/// The main of a suite, whose benchmarks `add_all()` registers. Writes into the report's context what
/// ran it, and the commit that WINNOW_COMMIT names.
template <class AddAll>
int run_suite(const char* name, int argc, char** argv, AddAll&& add_all) try {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "no GPU");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::AddCustomContext("cuda_driver", std::to_string(driver));
  benchmark::AddCustomContext("cuda_runtime", std::to_string(CUDART_VERSION));
  benchmark::AddCustomContext("copy_bandwidth_gb_s", std::to_string(measured_bandwidth() * 1e-9));
  if (const char* commit = std::getenv("WINNOW_COMMIT"))
    benchmark::AddCustomContext("commit", commit);
  add_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s\n", name, error.what());
  return 1;
}

}  // namespace winnow::bench
