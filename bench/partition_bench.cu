// SPDX-License-Identifier: Apache-2.0
// Partition building on the GPU: time, and its ratio to the memory floor.
//
//     partition_bench [Google Benchmark's options]
//
// Scans are simulated, or read from the folder that WINNOW_WORKLOADS names (stage1_coords.npy,
// stage1_batch.npy, …). Times are GPU times by events: `graph` is a graph of 20 builds divided by 20, `stream` 20 calls
// in a row, `cold` a graph of one build after other data has passed through the L2. `bounded` builds
// are told the box of the points and the number of batch items. The floor is the time that a copy
// kernel, measured first in the same run, needs for as many bytes: coordinates and batch ids read,
// lists written, once each.
#include <cmath>
#include <cub/device/device_radix_sort.cuh>
#include <memory>

#include "support/random.hpp"
#include "support/scan_workload.hpp"
#include "support/suite.cuh"
#include "winnow/partition.hpp"

namespace {

using namespace winnow;
using bench::buffer;
using bench::mode;

using support::w1_tokens;

/// Points in device memory, with the bounds that a caller would know.
class scene {
 public:
  scene(const std::vector<float>& coordinates, const std::vector<std::int32_t>& batch)
      : tokens_(static_cast<std::int64_t>(batch.size())), coordinates_(coordinates), batch_(batch) {
    coordinate_box box;
    box.lower.fill(1e30);
    box.upper.fill(-1e30);
    for (std::size_t i = 0; i < coordinates.size(); ++i) {
      box.lower[i % 3] = std::min(box.lower[i % 3], std::floor(double{coordinates[i]}));
      box.upper[i % 3] = std::max(box.upper[i % 3], std::ceil(double{coordinates[i]}));
    }
    bounds_.box = box;
    for (std::int32_t item : batch) bounds_.batch_items = std::max(bounds_.batch_items, item + 1);
  }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] point_set view() const {
    return {tensor_view<const float, 2>(coordinates_.data(), {tokens_, 3}), batch_.data(), nullptr};
  }
  [[nodiscard]] partition_bounds bounds(bool known) const {
    return known ? bounds_ : partition_bounds{};
  }

 private:
  std::int64_t tokens_;
  buffer<float> coordinates_;
  buffer<std::int32_t> batch_;
  partition_bounds bounds_;
};
using scene_pointer = std::shared_ptr<const scene>;

/// The tokens of a stage, 1 to 5, at most `limit` of them.
scene_pointer load_scene(int stage, std::int64_t limit) {
  const support::scan_stage& scan = support::workload_stages()[static_cast<std::size_t>(stage) - 1];
  const std::int64_t tokens = std::min(limit, scan.tokens());
  return std::make_shared<scene>(
      std::vector<float>(scan.coordinates.begin(), scan.coordinates.begin() + 3 * tokens),
      std::vector<std::int32_t>(scan.batch.begin(), scan.batch.begin() + tokens));
}

/// Hilly ground with four points a cubic window of 0.3 m, in random order.
scene_pointer make_scene(std::int64_t tokens) {
  support::random_source random(static_cast<std::uint64_t>(tokens));
  const double side = std::sqrt(static_cast<double>(tokens) / 44.0);
  std::vector<float> coordinates;
  for (std::int64_t i = 0; i < tokens; ++i) {
    const double x = random.uniform(-side / 2, side / 2);
    const double y = random.uniform(-side / 2, side / 2);
    const double z = 2.0 * std::sin(0.05 * x) + std::cos(0.08 * y) - 2.0;
    for (double c : {x, y, z}) coordinates.push_back(static_cast<float>(c));
  }
  return std::make_shared<scene>(coordinates, std::vector<std::int32_t>(tokens, 0));
}

/// Builds of one scene with their memory.
class builds {
 public:
  builds(scene_pointer points,
         const std::vector<std::variant<cubic_window, spherical_window>>& windows, bool bounded)
      : scene_(std::move(points)), bounds_(scene_->bounds(bounded)) {
    for (const auto& window : windows) {
      const partition_shape shape =
          std::visit([&](const auto& w) { return shape_of(w, scene_->tokens()); }, window);
      memory_.emplace_back(partition_bytes(shape));
      partition result;
      bench::check(bind_partition(shape, memory_.back().data(), memory_.back().bytes(), result));
      items_.push_back({window, result});
    }
    workspace_ = std::make_unique<buffer<std::byte>>(
        build_partitions_workspace_bytes(items_.data(), count(), scene_->view(), bounds_));
  }
  void submit(cudaStream_t stream) const {
    bench::check(build_partitions(items_.data(), count(), scene_->view(), bounds_,
                                  workspace_->data(), workspace_->bytes(), stream));
  }
  /// Bytes that have to be read and written; looks at the results.
  [[nodiscard]] double floor_bytes() const {
    double bytes = 16.0 * static_cast<double>(scene_->tokens());
    for (const point_partition& item : items_) {
      partition_counts counts{};
      bench::check(cudaMemcpy(&counts, item.result.counts, sizeof counts, cudaMemcpyDeviceToHost),
                   "copy counts");
      bench::check(check_flags(counts));
      bytes += (item.result.radius != nullptr ? 20.0 : 16.0) * counts.tokens + 4.0 * counts.windows;
    }
    return bytes;
  }
  [[nodiscard]] std::size_t workspace_bytes() const { return workspace_->bytes(); }
  [[nodiscard]] std::int64_t tokens() const { return scene_->tokens(); }

 private:
  [[nodiscard]] int count() const { return static_cast<int>(items_.size()); }

  scene_pointer scene_;
  partition_bounds bounds_;
  std::vector<buffer<std::byte>> memory_;
  std::vector<point_partition> items_;
  std::unique_ptr<buffer<std::byte>> workspace_;
};

void report(benchmark::State& state, double seconds, double bytes, double tokens) {
  bench::report_time(state, seconds, bytes);
  state.counters["tokens"] = tokens;
  state.counters["tokens_per_second"] = tokens / seconds;
}

template <class Body>
void add(const std::string& name, Body&& body) {
  bench::add_benchmark(name, 1, body);
}

using window_list = std::vector<std::variant<cubic_window, spherical_window>>;

void add_builds(const std::string& name, const scene_pointer& points, const window_list& windows,
                const std::vector<mode>& modes) {
  for (const bool bounded : {true, false})
    for (const mode how : modes) {
      const char* suffix = how == mode::graph ? "graph" : how == mode::stream ? "stream" : "cold";
      add(name + (bounded ? "/bounded/" : "/free/") + suffix, [=](benchmark::State& state) {
        const builds work(points, windows, bounded);
        const double seconds =
            bench::seconds_of(how, [&](cudaStream_t stream) { work.submit(stream); });
        report(state, seconds, work.floor_bytes(), static_cast<double>(work.tokens()));
        state.counters["workspace_mb"] = static_cast<double>(work.workspace_bytes()) * 1e-6;
      });
    }
}

/// SphereFormer's windows at a stage, 1 to 5.
window_list windows_of_stage(int stage) {
  const float cubic = 0.3f * static_cast<float>(1 << (stage - 1));
  const float angle[] = {2.0f, 3.0f, 4.5f, 6.75f, 10.125f};
  const float degrees = angle[stage - 1];
  return {cubic_window{{cubic, cubic, cubic}, false, 24},
          spherical_window{{degrees, degrees, 80.0f}, false, 24, 0.0125f}};
}

void add_scans() {
  const std::vector<mode> all{mode::graph, mode::stream, mode::cold};
  const scene_pointer w1 = load_scene(1, w1_tokens);
  const window_list windows = windows_of_stage(1);
  add_builds("partition/w1/cubic", w1, {windows[0]}, all);
  add_builds("partition/w1/spherical", w1, {windows[1]}, all);
  add_builds("partition/w1/both", w1, windows, all);
  std::vector<scene_pointer> stages;
  for (int stage = 1; stage <= 5; ++stage) {
    stages.push_back(load_scene(stage, std::int64_t{1} << 30));
    add_builds("partition/stage" + std::to_string(stage) + "/both", stages.back(),
               windows_of_stage(stage), {mode::graph});
  }
  for (const bool bounded : {true, false})
    add(std::string("partition/all_ten/") + (bounded ? "bounded" : "free") + "/graph",
        [=](benchmark::State& state) {
          std::vector<std::unique_ptr<builds>> work;
          for (int stage = 1; stage <= 5; ++stage)
            work.push_back(std::make_unique<builds>(stages[static_cast<std::size_t>(stage) - 1],
                                                    windows_of_stage(stage), bounded));
          const double seconds = bench::seconds_of(mode::graph, [&](cudaStream_t stream) {
            for (const auto& stage : work) stage->submit(stream);
          });
          double bytes = 0.0;
          double tokens = 0.0;
          for (const auto& stage : work) {
            bytes += stage->floor_bytes();
            tokens += static_cast<double>(stage->tokens());
          }
          report(state, seconds, bytes, tokens);
        });
}

/// A library's sort of as many (key, token) pairs as W1 has, on so many bits: a yardstick.
void add_library_sort(int bits) {
  add("library_sort/w1/" + std::to_string(bits) + "_bits/graph", [=](benchmark::State& state) {
    support::random_source random(7);
    std::vector<std::uint32_t> values;
    for (std::int64_t i = 0; i < w1_tokens; ++i)
      values.push_back(static_cast<std::uint32_t>(random.next() >> (64 - bits)));
    const buffer<std::uint32_t> keys(values);
    const buffer<std::uint32_t> sorted(values.size());
    const buffer<std::int32_t> tokens(values.size());
    const buffer<std::int32_t> order(values.size());
    std::size_t bytes = 0;
    const auto sort = [&](void* workspace, cudaStream_t stream) {
      bench::check(cub::DeviceRadixSort::SortPairs(workspace, bytes, keys.data(), sorted.data(),
                                                   tokens.data(), order.data(),
                                                   static_cast<int>(w1_tokens), 0, bits, stream),
                   "SortPairs");
    };
    sort(nullptr, nullptr);
    const buffer<std::byte> workspace(bytes);
    const double seconds = bench::seconds_of(
        mode::graph, [&](cudaStream_t stream) { sort(workspace.data(), stream); });
    report(state, seconds, 16.0 * w1_tokens, w1_tokens);
  });
}

void add_all() {
  bench::add_scan_context();
  add_scans();
  for (const std::int64_t tokens : {1000, 10000, 100000, 1000000, 10000000}) {
    const scene_pointer points = make_scene(tokens);
    const window_list windows = windows_of_stage(1);
    const std::string name = "partition/ground/" + std::to_string(tokens);
    add_builds(name + "/cubic", points, {windows[0]}, {mode::graph});
    add_builds(name + "/spherical", points, {windows[1]}, {mode::graph});
  }
  for (const int bits : {16, 24, 32}) add_library_sort(bits);
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_suite("partition_bench", argc, argv, add_all);
}
