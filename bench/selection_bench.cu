// SPDX-License-Identifier: Apache-2.0
// Selection on the GPU: time, and its ratio to the memory floor, on 4 images of 168 x 168 tokens with
// 96 channels and windows of 7 x 7 (the first stage of Swin-T at 672 x 672).
//
//     selection_bench [Google Benchmark's options]
//
// Times as in partition_bench. The floor is reading the features once, at the copy kernel's bandwidth;
// warm runs may beat it, as the features fit the L2. Rows without features show no ratio.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>

#include "support/device_timing.cuh"
#include "support/random.hpp"
#include "winnow/partition.hpp"
#include "winnow/selection.hpp"

namespace {

using namespace winnow;
using bench::buffer;
using bench::mode;

constexpr grid_window grid{4, 168, 168, 7, 3};
constexpr std::int64_t channels = 96;
double bandwidth = 0.0;  // of the copy kernel

template <class Body>
void add(const std::string& name, Body&& body) {
  for (const mode how : {mode::graph, mode::cold})
    benchmark::RegisterBenchmark((name + (how == mode::graph ? "/graph" : "/cold")).c_str(),
                                 [=](benchmark::State& state) {
                                   try {
                                     body(state, how);
                                   } catch (const std::exception& error) {
                                     state.SkipWithError(error.what());
                                   }
                                 })
        ->UseManualTime()
        ->Iterations(1)
        ->Unit(benchmark::kMicrosecond);
}

void report(benchmark::State& state, double seconds, double bytes) {
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(seconds);
  if (bytes == 0.0) return;
  state.counters["floor_us"] = bytes / bandwidth * 1e6;
  state.counters["ratio_to_floor"] = seconds * bandwidth / bytes;
  state.counters["bytes_per_second"] = bytes / seconds;
}

/// Features of a frame and everything that selection makes of them.
template <class T>
struct frame {
  std::int64_t windows = grid.windows_per_image();
  std::int64_t kept = kept_windows(windows, 0.6);
  buffer<T> features{random_features()};
  buffer<float> importance{static_cast<std::size_t>(grid.windows())};
  buffer<std::int32_t> ids{static_cast<std::size_t>(grid.windows())};
  buffer<std::int32_t> offsets{static_cast<std::size_t>(grid.batch) + 1};
  buffer<std::byte> workspace{1 << 20};
  buffer<std::byte> memory{partition_bytes(shape_of(grid))};
  tensor_view<const T, 3> view{features.data(),
                               {grid.batch, std::int64_t{grid.height} * grid.width, channels}};
  tensor_view<float, 2> map{importance.data(), {grid.batch, windows}};
  window_selection ranking = uniform_selection(grid.batch, windows, kept, ids.data());
  window_selection ragged = ragged_selection(grid.batch, windows, ids.data(), offsets.data());

  static std::vector<T> random_features() {
    support::random_source random(3);
    std::vector<T> values;
    for (std::int64_t i = 0; i < grid.tokens() * channels; ++i)
      values.push_back(from_float<T>(static_cast<float>(random.normal())));
    return values;
  }
  void measure(cudaStream_t stream) const {
    bench::check(window_importance(grid, view, map, stream));
  }
  void rank(cudaStream_t stream) const {
    bench::check(select_most_important(map, ranking, workspace.data(), workspace.bytes(), stream));
  }
  void threshold(cudaStream_t stream) const {
    bench::check(select_above(map, 5.58f, ragged, workspace.data(), workspace.bytes(), stream));
  }
  void build(const window_selection* kept_ones, cudaStream_t stream) const {
    partition result;
    bench::check(bind_partition(shape_of(grid, kept_ones), memory.data(), memory.bytes(), result));
    bench::check(
        build_partition(grid, kept_ones, result, workspace.data(), workspace.bytes(), stream));
  }
  /// Makes importance and ranking that later calls can start from.
  void prepare() const {
    measure(nullptr);
    rank(nullptr);
    bench::check(cudaDeviceSynchronize(), "prepare");
  }
  [[nodiscard]] double bytes() const { return static_cast<double>(features.bytes()); }
};

template <class T>
void add_top(const char* type) {
  add(std::string("selection/importance/") + type, [](benchmark::State& state, mode how) {
    const frame<T> work;
    report(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.measure(stream); }),
           work.bytes());
  });
  add(std::string("selection/top_k/") + type, [](benchmark::State& state, mode how) {
    const frame<T> work;
    const auto call = [&](cudaStream_t stream) {
      work.measure(stream);
      work.rank(stream);
    };
    report(state, bench::seconds_of(how, call), work.bytes());
  });
}

}  // namespace

int main(int argc, char** argv) try {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cudaDeviceProp device{};
  bench::check(cudaGetDeviceProperties(&device, 0), "no GPU");
  int driver = 0;
  bench::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  bandwidth = bench::copy_bandwidth();
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::AddCustomContext("cuda_driver", std::to_string(driver));
  benchmark::AddCustomContext("cuda_runtime", std::to_string(CUDART_VERSION));
  benchmark::AddCustomContext("copy_bandwidth_gb_s", std::to_string(bandwidth * 1e-9));
  if (const char* commit = std::getenv("WINNOW_COMMIT"))
    benchmark::AddCustomContext("commit", commit);

  add_top<half>("half");
  add_top<bfloat16>("bfloat16");
  add_top<float>("float");
  add("selection/rank_only", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    report(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.rank(stream); }), 0.0);
  });
  add("selection/threshold_only", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    report(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.threshold(stream); }),
           0.0);
  });
  add("selection/partition_of_all_windows", [](benchmark::State& state, mode how) {
    const frame<half> work;
    report(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.build(nullptr, stream); }),
           0.0);
  });
  add("selection/partition_of_kept_windows", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    const auto call = [&](cudaStream_t stream) { work.build(&work.ranking, stream); };
    report(state, bench::seconds_of(how, call), 0.0);
  });
  add("selection/features_to_partition", [](benchmark::State& state, mode how) {
    const frame<half> work;
    const auto call = [&](cudaStream_t stream) {
      work.measure(stream);
      work.rank(stream);
      work.build(&work.ranking, stream);
    };
    report(state, bench::seconds_of(how, call), work.bytes());
  });
  benchmark::RunSpecifiedBenchmarks();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "selection_bench: %s\n", error.what());
  return 1;
}
