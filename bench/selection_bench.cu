// SPDX-License-Identifier: Apache-2.0
// Selection on the GPU: time, and its ratio to the memory floor, on 4 images of 168 x 168 tokens with
// 96 channels and windows of 7 x 7 (the first stage of Swin-T at 672 x 672).
//
//     selection_bench [Google Benchmark's options]
//
// Times as in partition_bench. The floor is reading the features once, at the copy kernel's bandwidth;
// warm runs may beat it, as the features fit the L2. Rows without features show no ratio.
#include "support/random.hpp"
#include "support/suite.cuh"
#include "winnow/partition.hpp"
#include "winnow/selection.hpp"

namespace {

using namespace winnow;
using bench::buffer;
using bench::mode;
using bench::report_time;

constexpr grid_window grid{4, 168, 168, 7, 3};
constexpr std::int64_t channels = 96;

template <class Body>
void add(const std::string& name, Body&& body) {
  for (const mode how : {mode::graph, mode::cold})
    bench::add_benchmark(name + (how == mode::graph ? "/graph" : "/cold"), 1,
                         [=](benchmark::State& state) { body(state, how); });
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
    report_time(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.measure(stream); }),
                work.bytes());
  });
  add(std::string("selection/top_k/") + type, [](benchmark::State& state, mode how) {
    const frame<T> work;
    const auto call = [&](cudaStream_t stream) {
      work.measure(stream);
      work.rank(stream);
    };
    report_time(state, bench::seconds_of(how, call), work.bytes());
  });
}

void add_all() {
  add_top<half>("half");
  add_top<bfloat16>("bfloat16");
  add_top<float>("float");
  add("selection/rank_only", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    report_time(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.rank(stream); }),
                0.0);
  });
  add("selection/threshold_only", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    report_time(state, bench::seconds_of(how, [&](cudaStream_t stream) { work.threshold(stream); }),
                0.0);
  });
  add("selection/partition_of_all_windows", [](benchmark::State& state, mode how) {
    const frame<half> work;
    report_time(state,
                bench::seconds_of(how, [&](cudaStream_t stream) { work.build(nullptr, stream); }),
                0.0);
  });
  add("selection/partition_of_kept_windows", [](benchmark::State& state, mode how) {
    const frame<half> work;
    work.prepare();
    const auto call = [&](cudaStream_t stream) { work.build(&work.ranking, stream); };
    report_time(state, bench::seconds_of(how, call), 0.0);
  });
  add("selection/features_to_partition", [](benchmark::State& state, mode how) {
    const frame<half> work;
    const auto call = [&](cudaStream_t stream) {
      work.measure(stream);
      work.rank(stream);
      work.build(&work.ranking, stream);
    };
    report_time(state, bench::seconds_of(how, call), work.bytes());
  });
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_suite("selection_bench", argc, argv, add_all);
}
