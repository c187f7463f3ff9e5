// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the benchmarks of attention share: random inputs, timing, and the list of work with its
/// geometry.
///
/// Times are GPU times. Warm: a graph of 20 calls on the same arrays (fewer where they are long),
/// divided by their number. Cold: one call after 256 MB of other data have passed through L2.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/random.hpp"
#include "support/scan_workload.hpp"
#include "support/suite.cuh"
#include "winnow/attention.hpp"
#include "winnow/reference.hpp"

namespace winnow::bench {

using reference::host_partition;
using partition_pointer = std::shared_ptr<const host_partition>;

using device_bytes = buffer<std::byte>;

template <class T>
__device__ T rounded(float value) {
  if constexpr (std::is_same_v<T, half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}

/// About normal values from a hash of the index.
template <class T>
__global__ void fill_random(T* data, std::int64_t count, float deviation, std::uint32_t seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  std::uint32_t h = static_cast<std::uint32_t>(i) * 2654435761u ^ seed;
  float sum = -6.0f;
  for (int turn = 0; turn < 12; ++turn) {
    h ^= h << 13, h ^= h >> 17, h ^= h << 5;
    sum += static_cast<float>(h) * 0x1p-32f;
  }
  data[i] = rounded<T>(sum * deviation);
}

template <class T>
device_bytes random_array(std::int64_t count, float deviation, std::uint32_t seed) {
  device_bytes result(static_cast<std::size_t>(count) * sizeof(T));
  if (count > 0)
    fill_random<<<static_cast<unsigned>((count + 255) / 256), 256>>>(
        reinterpret_cast<T*>(result.data()), count, deviation, seed);
  check(cudaGetLastError(), "fill_random");
  return result;
}

struct group_plan {
  partition_pointer windows;
  int heads;
  position_encoding position;
};

/// Enough calls for a graph's start not to count, and no more: 20 of short calls, 2 of long ones.
inline int calls_per_graph(double seconds) {
  return std::clamp(static_cast<int>(10e-3 / std::max(seconds, 1e-6)), 2, 20);
}

inline void time_warm(benchmark::State& state, const std::function<void(cudaStream_t)>& launch) {
  timer watch;
  const cudaStream_t stream = watch.stream();
  const auto nothing = [] {};
  launch(stream);  // the first launch of a kernel loads it
  const int calls = calls_per_graph(watch.once(nothing, [&] { launch(stream); }));
  const graph replay(stream, [&] {
    for (int call = 0; call < calls; ++call) launch(stream);
  });
  const auto seconds = [&] { return watch.once(nothing, [&] { replay.launch(stream); }) / calls; };
  seconds();
  for (auto _ : state) state.SetIterationTime(seconds());
}

inline void time_cold(benchmark::State& state, const std::function<void(cudaStream_t)>& launch) {
  timer watch;
  const cudaStream_t stream = watch.stream();
  const device_bytes other(std::size_t{256} << 20);
  launch(stream);
  const auto flush = [&] {
    check(cudaMemsetAsync(other.data(), 0, other.bytes(), stream), "cudaMemset");
  };
  for (auto _ : state) state.SetIterationTime(watch.once(flush, [&] { launch(stream); }));
}

/// The inputs that forward and backward share: q, k, v, groups and their tables on the device.
template <class T>
class prepared_inputs {
 public:
  prepared_inputs(const std::vector<group_plan>& plans, int head_dim)
      : tokens(plans[0].windows->view().max_tokens), dim(head_dim) {
    for (const group_plan& plan : plans) heads += plan.heads;
    size = tokens * heads * dim;
    q = random_rows(1);
    k = random_rows(2);
    v = random_rows(3);
    scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (const group_plan& plan : plans) add_group(plan);
  }

  void* own(device_bytes&& memory) {
    memory_.push_back(std::move(memory));
    return memory_.back().data();
  }
  tensor_view<const T, 3> random_rows(std::uint32_t seed) {
    return {static_cast<const T*>(own(random_array<T>(size, 1.0f, seed))), {tokens, heads, dim}};
  }
  tensor_view<T, 3> empty_rows() {
    return {static_cast<T*>(own(device_bytes(static_cast<std::size_t>(size) * sizeof(T)))),
            {tokens, heads, dim}};
  }
  /// The bytes of one array's rows that have to be moved: those of tokens in a window.
  [[nodiscard]] double row_bytes() const {
    return assigned_rows * static_cast<double>(dim) * sizeof(T);
  }

  std::int64_t tokens, heads = 0, dim, size = 0;
  double pairs = 0.0;          ///< of all heads
  double assigned_rows = 0.0;  ///< tokens in a window, once for each head
  float scale = 1.0f;
  tensor_view<const T, 3> q, k, v;
  std::vector<head_group<T>> groups;

 private:
  void add_group(const group_plan& plan) {
    const partition& host = plan.windows->view();
    assigned_rows += static_cast<double>(host.counts->assigned) * plan.heads;
    for (std::int64_t slot = 0; slot < host.counts->assigned; ++slot)
      pairs += static_cast<double>(host.bounds[2 * slot + 1] - host.bounds[2 * slot]) * plan.heads;
    head_group<T> group;
    group.heads = plan.heads;
    group.position = plan.position;
    const partition_shape kind{host.max_tokens, host.max_windows, host.relative};
    void* memory = own(device_bytes(partition_bytes(kind)));
    check(bind_partition(kind, memory, partition_bytes(kind), group.windows));
    // Both copies have one layout, which begins with the counts.
    check(cudaMemcpy(memory, host.counts, partition_bytes(kind), cudaMemcpyHostToDevice),
          "copy a partition");
    const relative_position& relative = host.relative;
    if (plan.position == position_encoding::contextual) {
      const std::int64_t shape[] = {relative.table_rows(), 3, plan.heads, dim};
      const std::int64_t elements = shape[0] * 3 * plan.heads * dim;
      group.table_q = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 4))), shape};
      group.table_k = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 5))), shape};
      group.table_v = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 6))), shape};
    } else if (plan.position == position_encoding::bias) {
      const std::int64_t shape[] = {relative.bias_rows(), plan.heads};
      group.bias_table = {static_cast<const T*>(own(random_array<T>(shape[0] * shape[1], 0.5f, 7))),
                          shape};
    }
    groups.push_back(group);
  }

  std::vector<device_bytes> memory_;
};

/// What a piece of work is called, and what has to be built for it.
struct work {
  std::string name;
  int dim;
  std::function<std::vector<group_plan>()> plan;
  /// One point of a curve: half, warm, and nothing else.
  bool sweep = false;
};

/// The plan, made when it is first asked for and kept for the rows that follow.
inline std::function<std::vector<group_plan>()> kept_plan(
    std::function<std::vector<group_plan>()> make) {
  auto made = std::make_shared<std::vector<group_plan>>();
  return [made, make = std::move(make)] {
    if (made->empty()) *made = make();
    return *made;
  };
}

/// Times one call, warm or cold, against the floor of the bytes it has to move.
/// \param pairs of tokens and heads that the call attends, once forward or once backward.
inline void report(benchmark::State& state, bool cold, double floor_bytes, double pairs,
                   const std::function<void(cudaStream_t)>& launch) {
  cold ? time_cold(state, launch) : time_warm(state, launch);
  state.counters["floor_us"] = floor_bytes / measured_bandwidth() * 1e6;
  state.counters["ratio_to_floor"] = benchmark::Counter(
      floor_bytes / measured_bandwidth(),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["pairs"] = pairs;
  state.counters["pairs_per_second"] =
      benchmark::Counter(pairs, benchmark::Counter::kIsIterationInvariantRate);
  state.SetBytesProcessed(
      static_cast<std::int64_t>(floor_bytes * static_cast<double>(state.iterations())));
}

inline partition_pointer uniform_windows(std::int64_t tokens, int size) {
  std::vector<std::int32_t> labels(static_cast<std::size_t>(tokens));
  for (std::int64_t i = 0; i < tokens; ++i)
    labels[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i / size);
  label_set set;
  set.labels = labels.data();
  set.tokens = tokens;
  auto result = std::make_shared<host_partition>(shape_of(labels_window{}, set));
  check(reference::build_partition(labels_window{}, set, result->view()));
  return result;
}

inline partition_pointer image_windows(const grid_window& window) {
  auto result = std::make_shared<host_partition>(shape_of(window));
  check(reference::build_partition(window, nullptr, result->view()));
  return result;
}

/// The windows that pruning leaves, in the order of an importance drawn at random.
inline partition_pointer kept_image_windows(const grid_window& window, double prune_ratio) {
  const std::int64_t windows = window.windows_per_image();
  const std::int64_t kept = kept_windows(windows, prune_ratio);
  support::random_source random(9);
  std::vector<float> importance(static_cast<std::size_t>(window.windows()));
  for (float& value : importance) value = static_cast<float>(random.uniform(0.0, 1.0));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(window.batch * kept));
  const window_selection selection = uniform_selection(window.batch, windows, kept, ids.data());
  const tensor_view<const float, 2> map(importance.data(), {window.batch, windows});
  check(reference::select_most_important(map, selection));
  auto result = std::make_shared<host_partition>(shape_of(window, &selection));
  check(reference::build_partition(window, &selection, result->view()));
  return result;
}

/// The tokens of a stage, at most `limit` of them.
template <class Window>
partition_pointer scan_windows(int stage, std::int64_t limit, const Window& window) {
  const support::scan_stage& scan = support::workload_stages()[static_cast<std::size_t>(stage) - 1];
  const std::int64_t tokens = std::min(limit, scan.tokens());
  const point_set points{tensor_view<const float, 2>(scan.coordinates.data(), {tokens, 3}),
                         scan.batch.data(), nullptr};
  auto result = std::make_shared<host_partition>(shape_of(window, tokens));
  check(reference::build_partition(window, points, result->view()));
  return result;
}

struct stage_geometry {
  const char* name;
  int stage;
  std::int64_t limit;
  int heads;
  float cube;
  float angle;
};

/// The SphereFormer branches on scans: each stage's cubic windows, spherical windows, and both as two
/// head groups of one call.
inline std::vector<work> scan_work() {
  constexpr std::int64_t all = std::int64_t{1} << 31;
  const stage_geometry stages[] = {{"W1", 1, support::w1_tokens, 2, 0.3f, 2.0f},
                                   {"stage1", 1, all, 1, 0.3f, 2.0f},
                                   {"stage2", 2, all, 2, 0.6f, 3.0f},
                                   {"stage3", 3, all, 4, 1.2f, 4.5f},
                                   {"stage4", 4, all, 8, 2.4f, 6.75f},
                                   {"stage5", 5, all, 8, 4.8f, 10.125f}};
  std::vector<work> result;
  for (const stage_geometry& s : stages) {
    const auto cubic = [s] {
      return scan_windows(s.stage, s.limit, cubic_window{{s.cube, s.cube, s.cube}, false, 24, {}});
    };
    const auto spherical = [s] {
      spherical_window window;
      window.size = {s.angle, s.angle, 80.0f};
      window.quant_length = 24;
      window.exponential_a = 0.0125f;
      return scan_windows(s.stage, s.limit, window);
    };
    for (const position_encoding position :
         {position_encoding::none, position_encoding::contextual}) {
      const std::string suffix = position == position_encoding::none ? "plain" : "contextual";
      const std::string name = s.name;
      result.push_back({name + "_cubic_" + suffix, 16, [=] {
                          return std::vector<group_plan>{{cubic(), s.heads, position}};
                        }});
      result.push_back({name + "_spherical_" + suffix, 16, [=] {
                          return std::vector<group_plan>{{spherical(), s.heads, position}};
                        }});
      result.push_back({name + "_both_" + suffix, 16, [=] {
                          return std::vector<group_plan>{{cubic(), s.heads, position},
                                                         {spherical(), s.heads, position}};
                        }});
    }
  }
  return result;
}

/// Windows of one size, and the stages of a Swin transformer at 672 x 672, batch 4: all of their
/// windows, and 80 %, 40 % and 20 % of them.
inline std::vector<work> synthetic_work() {
  std::vector<work> result;
  const struct {
    std::int64_t tokens;
    int size, heads, dim;
  } uniform[] = {
      {262128, 48, 8, 16}, {262144, 256, 8, 32}, {131072, 1024, 8, 16}, {131072, 1024, 8, 64}};
  for (const auto& u : uniform)
    result.push_back(
        {"windows_of_" + std::to_string(u.size) + "_dim_" + std::to_string(u.dim), u.dim, [u] {
           return std::vector<group_plan>{
               {uniform_windows(u.tokens, u.size), u.heads, position_encoding::none}};
         }});
  for (int stage = 0; stage < 4; ++stage)
    for (const int shift : {0, 3}) {
      const int edge = 168 >> stage, heads = 3 << stage;
      result.push_back(
          {"swin_stage" + std::to_string(stage + 1) + (shift ? "_shifted" : ""), 32, [=] {
             return std::vector<group_plan>{
                 {image_windows({4, edge, edge, 7, shift}), heads, position_encoding::bias}};
           }});
      if (shift == 0) continue;
      for (const int percent : {80, 40, 20})
        result.push_back(
            {"swin_stage" + std::to_string(stage + 1) + "_shifted_kept_" + std::to_string(percent),
             32, [=] {
               const grid_window window{4, edge, edge, 7, shift};
               return std::vector<group_plan>{{kept_image_windows(window, 1.0 - percent / 100.0),
                                               heads, position_encoding::bias}};
             }});
    }
  return result;
}

/// Curves: time against tokens, against the length of windows at every head dim, and in windows that
/// are longer still.
inline std::vector<work> sweep_work() {
  std::vector<work> result;
  const auto add = [&](std::string name, std::int64_t tokens, int size, int heads, int dim) {
    result.push_back({std::move(name), dim,
                      [=] {
                        return std::vector<group_plan>{{uniform_windows(tokens / size * size, size),
                                                        heads, position_encoding::none}};
                      },
                      true});
  };
  for (std::int64_t tokens = 1000; tokens <= 10000000; tokens *= 10)
    add("sweep_tokens_" + std::to_string(tokens), tokens, 24, 2, 16);
  for (const int dim : {16, 32, 64, 128})
    for (int size = 16; size <= 4096; size *= 2)
      add("sweep_window_" + std::to_string(size) + "_dim_" + std::to_string(dim), 65536, size,
          128 / dim, dim);
  for (const int size : {1024, 4096, 16384, 50000})
    add("sweep_long_" + std::to_string(size), 200000, size, 1, 16);
  return result;
}

/// All work: scans, synthetic, curves.
inline std::vector<work> all_work() {
  std::vector<work> result = scan_work();
  for (work& item : synthetic_work()) result.push_back(std::move(item));
  for (work& item : sweep_work()) result.push_back(std::move(item));
  for (work& item : result) item.plan = kept_plan(std::move(item.plan));
  return result;
}

/// The main of a suite; `add(T(), item, name of T)` registers a piece of work: in half, and what says
/// most in the other storage types, too.
template <class Add>
int run_attention_suite(const char* name, int argc, char** argv, Add&& add) {
  return run_suite(name, argc, argv, [&] {
    add_scan_context();
    for (const work& item : all_work()) {
      const bool reference = item.name.rfind("W1", 0) == 0;
      add(half(), item, "half");
      if (reference || item.name.rfind("windows_of", 0) == 0) add(bfloat16(), item, "bfloat16");
      if (reference) add(float(), item, "float");
    }
  });
}

}  // namespace winnow::bench
