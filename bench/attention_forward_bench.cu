// SPDX-License-Identifier: Apache-2.0
// Forward attention on the GPU: time, and its ratio to the memory floor.
//
//     WINNOW_WORKLOADS=folder attention_forward_bench [Google Benchmark's options]
//
// The folder holds stage1_coords.npy, stage1_batch.npy, …; without it only synthetic work runs.
// Times are GPU times by events. Warm: a graph of 20 calls on the same arrays, divided by 20. Cold:
// one call after 256 MB of other data have passed through L2. The floor is the time that a
// vectorised copy kernel, measured first in the same run, would need to read q, k, v and write out.
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/npy.hpp"
#include "support/random.hpp"
#include "winnow/attention.hpp"
#include "winnow/reference.hpp"

namespace {

using namespace winnow;
using reference::host_partition;
using partition_pointer = std::shared_ptr<const host_partition>;

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
void check(const status& result) {
  if (!result.ok()) throw std::runtime_error(result.message());
}

/// Device memory.
class buffer {
 public:
  explicit buffer(std::size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  buffer(buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  buffer(const buffer&) = delete;
  ~buffer() { cudaFree(data_); }
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

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
buffer random_array(std::int64_t count, float deviation, std::uint32_t seed) {
  buffer result(static_cast<std::size_t>(count) * sizeof(T));
  if (count > 0)
    fill_random<<<static_cast<unsigned>((count + 255) / 256), 256>>>(static_cast<T*>(result.data()),
                                                                     count, deviation, seed);
  check(cudaGetLastError(), "fill_random");
  return result;
}

__global__ void copy_vectors(const uint4* from, uint4* to, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride)
    to[i] = from[i];
}

/// Times of several repetitions, in ms.
double median(std::vector<float> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

class stopwatch {
 public:
  stopwatch() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  stopwatch(const stopwatch&) = delete;
  ~stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  float time(const std::function<void()>& work) {
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return milliseconds;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// Bytes read and written per second by the copy kernel, on arrays far larger than L2.
double copy_bandwidth() {
  static const double measured = [] {
    const std::int64_t vectors = std::int64_t{1} << 26;
    const buffer from(vectors * 16), to(vectors * 16);
    check(cudaMemset(from.data(), 1, from.bytes()), "cudaMemset");
    stopwatch watch;
    std::vector<float> times;
    for (int turn = 0; turn < 12; ++turn) {
      const float time = watch.time([&] {
        copy_vectors<<<132 * 16, 512, 0, watch.stream()>>>(static_cast<const uint4*>(from.data()),
                                                           static_cast<uint4*>(to.data()), vectors);
      });
      if (turn >= 2) times.push_back(time);
    }
    return static_cast<double>(2 * vectors * 16) / (median(times) * 1e-3);
  }();
  return measured;
}

struct group_plan {
  partition_pointer windows;
  int heads;
  position_encoding position;
};

/// One attention call with random inputs on the device.
template <class T>
class prepared_call {
 public:
  prepared_call(const std::vector<group_plan>& plans, int dim) {
    const std::int64_t tokens = plans[0].windows->view().max_tokens;
    std::int64_t heads = 0;
    for (const group_plan& plan : plans) heads += plan.heads;
    const tensor_layout<3> rows = packed_layout<3>({tokens, heads, dim});
    const std::int64_t size = tokens * heads * dim;
    floor_bytes = 4.0 * static_cast<double>(size) * sizeof(T);
    const auto own = [&](buffer&& memory) {
      memory_.push_back(std::move(memory));
      return memory_.back().data();
    };
    arguments_.q = {static_cast<const T*>(own(random_array<T>(size, 1.0f, 1))), rows};
    arguments_.k = {static_cast<const T*>(own(random_array<T>(size, 1.0f, 2))), rows};
    arguments_.v = {static_cast<const T*>(own(random_array<T>(size, 1.0f, 3))), rows};
    arguments_.out = {static_cast<T*>(own(buffer(size * sizeof(T)))), rows};
    arguments_.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (const group_plan& plan : plans) {
      const partition& host = plan.windows->view();
      head_group<T> group;
      group.heads = plan.heads;
      group.position = plan.position;
      const partition_shape kind{host.max_tokens, host.max_windows, host.relative};
      void* memory = own(buffer(partition_bytes(kind)));
      check(bind_partition(kind, memory, partition_bytes(kind), group.windows));
      // Both copies have one layout, which begins with the counts.
      check(cudaMemcpy(memory, host.counts, partition_bytes(kind), cudaMemcpyHostToDevice),
            "copy a partition");
      const relative_position& relative = host.relative;
      if (plan.position == position_encoding::contextual) {
        const tensor_layout<4> table =
            packed_layout<4>({relative.table_rows(), 3, plan.heads, dim});
        const std::int64_t elements = table.shape[0] * table.stride[0];
        group.table_q = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 4))), table};
        group.table_k = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 5))), table};
        group.table_v = {static_cast<const T*>(own(random_array<T>(elements, 0.5f, 6))), table};
      } else if (plan.position == position_encoding::bias) {
        const tensor_layout<2> table = packed_layout<2>({relative.bias_rows(), plan.heads});
        group.bias_table = {
            static_cast<const T*>(own(random_array<T>(table.shape[0] * table.stride[0], 0.5f, 7))),
            table};
      }
      groups_.push_back(group);
    }
    arguments_.groups = groups_.data();
    arguments_.group_count = static_cast<int>(groups_.size());
  }

  void launch(cudaStream_t stream) const {
    check(attention_forward(arguments_, nullptr, 0, stream));
  }
  double floor_bytes = 0.0;

 private:
  std::vector<buffer> memory_;
  std::vector<head_group<T>> groups_;
  attention_forward_arguments<T> arguments_;
};

constexpr int calls_per_graph = 20;

void time_warm(benchmark::State& state, const std::function<void(cudaStream_t)>& launch) {
  stopwatch watch;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(watch.stream(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int call = 0; call < calls_per_graph; ++call) launch(watch.stream());
  check(cudaStreamEndCapture(watch.stream(), &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  const auto replay = [&] {
    check(cudaGraphLaunch(executable, watch.stream()), "cudaGraphLaunch");
  };
  watch.time(replay);
  for (auto _ : state) state.SetIterationTime(watch.time(replay) * 1e-3 / calls_per_graph);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

void time_cold(benchmark::State& state, const std::function<void(cudaStream_t)>& launch) {
  stopwatch watch;
  const buffer other(std::size_t{256} << 20);
  launch(watch.stream());
  for (auto _ : state) {
    check(cudaMemsetAsync(other.data(), 0, other.bytes(), watch.stream()), "cudaMemset");
    state.SetIterationTime(watch.time([&] { launch(watch.stream()); }) * 1e-3);
  }
}

struct work {
  std::string name;
  int dim;
  std::function<std::vector<group_plan>()> plan;
};

template <class T>
void add_work(const work& item, const char* type) {
  for (const bool cold : {false, true})
    benchmark::RegisterBenchmark(
        (item.name + "/" + type + (cold ? "/cold" : "/warm")).c_str(),
        [item, cold](benchmark::State& state) {
          try {
            const prepared_call<T> call(item.plan(), item.dim);
            const auto launch = [&](cudaStream_t stream) { call.launch(stream); };
            cold ? time_cold(state, launch) : time_warm(state, launch);
            state.counters["floor_us"] = call.floor_bytes / copy_bandwidth() * 1e6;
            state.counters["of_floor"] = benchmark::Counter(
                call.floor_bytes / copy_bandwidth(),
                benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
            state.SetBytesProcessed(static_cast<std::int64_t>(
                call.floor_bytes * static_cast<double>(state.iterations())));
          } catch (const std::exception& problem) {
            state.SkipWithError(problem.what());
          }
        })
        ->UseManualTime()
        ->Iterations(cold ? 15 : 10)
        ->Unit(benchmark::kMicrosecond);
}

partition_pointer uniform_windows(std::int64_t tokens, int size) {
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

partition_pointer image_windows(const grid_window& window) {
  auto result = std::make_shared<host_partition>(shape_of(window));
  check(reference::build_partition(window, nullptr, result->view()));
  return result;
}

/// The points of a stage, at most `limit` of them.
template <class Window>
partition_pointer scan_windows(const std::filesystem::path& folder, int stage, std::int64_t limit,
                               const Window& window) {
  const std::string name = "stage" + std::to_string(stage);
  const support::npy_array coords = support::read_npy(folder / (name + "_coords.npy"));
  const support::npy_array batch = support::read_npy(folder / (name + "_batch.npy"));
  const std::int64_t tokens = std::min(limit, coords.shape[0]);
  const point_set points{tensor_view<const float, 2>(coords.as<float>(), {tokens, 3}),
                         batch.as<std::int32_t>(), nullptr};
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

void add_scans(const std::filesystem::path& folder) {
  constexpr std::int64_t all = std::int64_t{1} << 31;
  const stage_geometry stages[] = {
      {"W1", 1, 268720, 2, 0.3f, 2.0f},   {"stage1", 1, all, 1, 0.3f, 2.0f},
      {"stage2", 2, all, 2, 0.6f, 3.0f},  {"stage3", 3, all, 4, 1.2f, 4.5f},
      {"stage4", 4, all, 8, 2.4f, 6.75f}, {"stage5", 5, all, 8, 4.8f, 10.125f}};
  for (const stage_geometry& s : stages) {
    const auto cubic = [folder, s] {
      return scan_windows(folder, s.stage, s.limit,
                          cubic_window{{s.cube, s.cube, s.cube}, false, 24, {}});
    };
    const auto spherical = [folder, s] {
      spherical_window window;
      window.size = {s.angle, s.angle, 80.0f};
      window.quant_length = 24;
      window.exponential_a = 0.0125f;
      return scan_windows(folder, s.stage, s.limit, window);
    };
    for (const position_encoding position :
         {position_encoding::none, position_encoding::contextual}) {
      const std::string suffix = position == position_encoding::none ? "plain" : "contextual";
      const work of_cubes{std::string(s.name) + "_cubic_" + suffix, 16, [=] {
                            return std::vector<group_plan>{{cubic(), s.heads, position}};
                          }};
      const work of_cones{std::string(s.name) + "_spherical_" + suffix, 16, [=] {
                            return std::vector<group_plan>{{spherical(), s.heads, position}};
                          }};
      const work of_both{std::string(s.name) + "_both_" + suffix, 16, [=] {
                           return std::vector<group_plan>{{cubic(), s.heads, position},
                                                          {spherical(), s.heads, position}};
                         }};
      for (const work* item : {&of_cubes, &of_cones, &of_both}) {
        add_work<half>(*item, "half");
        if (s.limit != all) {
          add_work<bfloat16>(*item, "bfloat16");
          add_work<float>(*item, "float");
        }
      }
    }
  }
}

void add_synthetic() {
  const struct {
    std::int64_t tokens;
    int size, heads, dim;
  } uniform[] = {
      {262128, 48, 8, 16}, {262144, 256, 8, 32}, {131072, 1024, 8, 16}, {131072, 1024, 8, 64}};
  for (const auto& u : uniform) {
    const work item{"windows_of_" + std::to_string(u.size) + "_dim_" + std::to_string(u.dim), u.dim,
                    [u] {
                      return std::vector<group_plan>{
                          {uniform_windows(u.tokens, u.size), u.heads, position_encoding::none}};
                    }};
    add_work<half>(item, "half");
    add_work<bfloat16>(item, "bfloat16");
  }
  for (int stage = 0; stage < 4; ++stage)
    for (const int shift : {0, 3}) {
      const int edge = 168 >> stage, heads = 3 << stage;
      add_work<half>({"swin_stage" + std::to_string(stage + 1) + (shift ? "_shifted" : ""), 32,
                      [=] {
                        return std::vector<group_plan>{{image_windows({4, edge, edge, 7, shift}),
                                                        heads, position_encoding::bias}};
                      }},
                     "half");
    }
  for (std::int64_t tokens = 1000; tokens <= 10000000; tokens *= 10)
    add_work<half>({"short_windows_" + std::to_string(tokens) + "_tokens", 16,
                    [=] {
                      return std::vector<group_plan>{
                          {uniform_windows(tokens, 24), 2, position_encoding::none}};
                    }},
                   "half");
  for (const int size : {256, 1024, 4096, 16384, 50000})
    add_work<half>({"one_head_windows_of_" + std::to_string(size), 16,
                    [=] {
                      return std::vector<group_plan>{{uniform_windows(200000 / size * size, size),
                                                      1, position_encoding::none}};
                    }},
                   "half");
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    benchmark::AddCustomContext("gpu", device.name);
    benchmark::AddCustomContext("copy_bandwidth_GB_s", std::to_string(copy_bandwidth() * 1e-9));
    if (const char* folder = std::getenv("WINNOW_WORKLOADS")) add_scans(folder);
    add_synthetic();
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "attention_forward_bench: %s\n", problem.what());
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
