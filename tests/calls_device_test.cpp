// SPDX-License-Identifier: Apache-2.0
// What docs/calls.md says about the device calls, tried on each: how many kernels a call launches, that
// it allocates neither on the host nor on the device, that it can be captured, that its results repeat
// bit for bit, alone and from several threads at once.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/device_gradients.hpp"
#include "support/device_partition.hpp"
#include "support/failing_allocation.hpp"

namespace winnow::test {
namespace {

using bytes = std::vector<unsigned char>;

/// One set of arguments of a call, with memory of its own.
struct call_instance {
  std::function<status(cudaStream_t)> submit;
  std::function<void()> poison;  ///< the results
  std::function<bytes()> result;
};

/// A row of the table: the same arguments again and again, in separate memory.
struct call_row {
  std::string name;
  std::function<call_instance()> make;
};

template <class T>
bytes bytes_of(const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const unsigned char*>(values.data());
  return {first, first + values.size() * sizeof(T)};
}

constexpr cubic_window cubes{{0.5f, 0.5f, 0.5f}, false, 24, {}};

spherical_window sectors() {
  spherical_window window;
  window.size = {20.0f, 20.0f, 80.0f};
  window.quant_length = 24;
  window.exponential_a = 0.0125f;
  return window;
}

template <class Window>
call_instance build_points(const Window& window) {
  const random_points host(3000, 3, 4.0f, 5);
  auto points = std::make_shared<device_points<float>>(host.coordinates, host.batch);
  auto result = std::make_shared<device_partition>(shape_of(window, host.tokens()));
  auto workspace = std::make_shared<device_array<std::byte>>(
      static_cast<std::int64_t>(build_partition_workspace_bytes(window, points->view())));
  return {[=](cudaStream_t stream) {
            return build_partition(window, points->view(), {}, result->view(), workspace->data(),
                                   workspace->bytes(), stream);
          },
          [=] { result->poison(); }, [=] { return bytes_of(result->read().bytes()); }};
}

call_instance build_labels() {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 3000; ++i) ids.push_back(i * 7919 % 301 - 1);
  auto labels = std::make_shared<device_array<std::int32_t>>(ids);
  label_set set;
  set.labels = labels->data();
  set.tokens = labels->size();
  auto result = std::make_shared<device_partition>(shape_of(labels_window{}, set));
  auto workspace = std::make_shared<device_array<std::byte>>(
      static_cast<std::int64_t>(build_partition_workspace_bytes(labels_window{}, set)));
  return {[=](cudaStream_t stream) {
            const auto keep = labels;
            return build_partition(labels_window{}, set, {}, result->view(), workspace->data(),
                                   workspace->bytes(), stream);
          },
          [=] { result->poison(); }, [=] { return bytes_of(result->read().bytes()); }};
}

constexpr grid_window image{2, 28, 28, 7, 3};

call_instance build_grid(bool selected) {
  auto ids = std::make_shared<device_array<std::int32_t>>(std::vector<std::int32_t>{3, 1, 0, 15});
  const window_selection kept = uniform_selection(2, image.windows_per_image(), 2, ids->data());
  const window_selection* given = selected ? &kept : nullptr;
  auto result = std::make_shared<device_partition>(shape_of(image, given));
  auto workspace = std::make_shared<device_array<std::byte>>(
      static_cast<std::int64_t>(build_partition_workspace_bytes(image, given)));
  return {[=](cudaStream_t stream) {
            const auto keep = ids;
            return build_partition(image, selected ? &kept : nullptr, result->view(),
                                   workspace->data(), workspace->bytes(), stream);
          },
          [=] { result->poison(); }, [=] { return bytes_of(result->read().bytes()); }};
}

call_instance build_both() {
  const random_points host(3000, 3, 4.0f, 5);
  auto points = std::make_shared<device_points<float>>(host.coordinates, host.batch);
  auto cubic = std::make_shared<device_partition>(shape_of(cubes, host.tokens()));
  auto spherical = std::make_shared<device_partition>(shape_of(sectors(), host.tokens()));
  const std::array<point_partition, 2> items{point_partition{cubes, cubic->view()},
                                             point_partition{sectors(), spherical->view()}};
  auto workspace = std::make_shared<device_array<std::byte>>(
      static_cast<std::int64_t>(build_partitions_workspace_bytes(items.data(), 2, points->view())));
  return {[=](cudaStream_t stream) {
            return build_partitions(items.data(), 2, points->view(), {}, workspace->data(),
                                    workspace->bytes(), stream);
          },
          [=] {
            cubic->poison();
            spherical->poison();
          },
          [=] {
            bytes all = bytes_of(cubic->read().bytes());
            const bytes more = bytes_of(spherical->read().bytes());
            all.insert(all.end(), more.begin(), more.end());
            return all;
          }};
}

call_instance fetch_counts() {
  auto source = std::make_shared<partition_copy>(partition_sizes({3, 1, 4, 1, 5}).view());
  std::shared_ptr<partition_counts> host(
      [] {
        void* memory = nullptr;
        check_cuda(cudaMallocHost(&memory, sizeof(partition_counts)), "cudaMallocHost");
        return static_cast<partition_counts*>(memory);
      }(),
      [](partition_counts* memory) { cudaFreeHost(memory); });
  return {[=](cudaStream_t stream) { return copy_counts(source->view(), host.get(), stream); },
          [=] { *host = {}; }, [=] { return bytes_of(std::vector<partition_counts>{*host}); }};
}

/// Importances of two images with `windows` windows each, and what selections of them need.
struct selection_memory {
  explicit selection_memory(std::int64_t windows, std::size_t workspace_bytes)
      : importance(2 * windows),
        ids(2 * windows),
        offsets(3),
        mask(2 * windows),
        workspace(static_cast<std::int64_t>(workspace_bytes)) {
    std::vector<float> values;
    std::vector<std::uint8_t> flags;
    for (std::int64_t i = 0; i < importance.size(); ++i) {
      values.push_back(static_cast<float>(i * 7919 % 1009));
      flags.push_back(static_cast<std::uint8_t>(i % 3 == 0));
    }
    importance.copy_from(values);
    mask.copy_from(flags);
  }
  device_array<float> importance;
  device_array<std::int32_t> ids, offsets;
  device_array<std::uint8_t> mask;
  device_array<std::byte> workspace;
};

/// \param call takes the memory, the number of windows and the stream.
template <class Call>
call_instance select(std::int64_t windows, std::size_t workspace_bytes, Call call) {
  auto memory = std::make_shared<selection_memory>(windows, workspace_bytes);
  return {[=](cudaStream_t stream) { return call(*memory, stream); },
          [=] {
            memory->ids.poison();
            memory->offsets.poison();
          },
          [=] {
            bytes all = bytes_of(memory->ids.to_host());
            const bytes more = bytes_of(memory->offsets.to_host());
            all.insert(all.end(), more.begin(), more.end());
            return all;
          }};
}

call_instance rank(std::int64_t windows) {
  return select(windows, select_most_important_workspace_bytes(2, windows),
                [=](selection_memory& memory, cudaStream_t stream) {
                  return select_most_important(
                      tensor_view<const float, 2>(memory.importance.data(), {2, windows}),
                      uniform_selection(2, windows, windows / 2, memory.ids.data()),
                      memory.workspace.data(), memory.workspace.bytes(), stream);
                });
}

call_instance threshold() {
  return select(
      500, select_above_workspace_bytes(2, 500), [](selection_memory& memory, cudaStream_t stream) {
        return select_above(tensor_view<const float, 2>(memory.importance.data(), {2, 500}), 300.0f,
                            ragged_selection(2, 500, memory.ids.data(), memory.offsets.data()),
                            memory.workspace.data(), memory.workspace.bytes(), stream);
      });
}

call_instance window_mask() {
  return select(500, select_window_mask_workspace_bytes(2, 500),
                [](selection_memory& memory, cudaStream_t stream) {
                  return select_window_mask(
                      tensor_view<const std::uint8_t, 2>(memory.mask.data(), {2, 500}),
                      ragged_selection(2, 500, memory.ids.data(), memory.offsets.data()),
                      memory.workspace.data(), memory.workspace.bytes(), stream);
                });
}

call_instance token_mask() {
  constexpr grid_window small{2, 14, 14, 7, 0};
  return select(196, select_token_mask_workspace_bytes(small),
                [=](selection_memory& memory, cudaStream_t stream) {
                  return select_token_mask(
                      small, tensor_view<const std::uint8_t, 2>(memory.mask.data(), {2, 196}),
                      ragged_selection(2, 4, memory.ids.data(), memory.offsets.data()),
                      memory.workspace.data(), memory.workspace.bytes(), stream);
                });
}

call_instance measure_importance() {
  std::vector<half> values;
  for (std::int64_t i = 0; i < image.tokens() * 16; ++i)
    values.push_back(from_float<half>(static_cast<float>(i * 31 % 97) * 0.1f));
  auto features = std::make_shared<device_array<half>>(values);
  auto map = std::make_shared<device_array<float>>(image.windows());
  return {[=](cudaStream_t stream) {
            return window_importance(
                image, tensor_view<const half, 3>(features->data(), {2, 28 * 28, 16}),
                tensor_view<float, 2>(map->data(), {2, image.windows_per_image()}), stream);
          },
          [=] { map->poison(); }, [=] { return bytes_of(map->to_host()); }};
}

call_instance attend(scene kind) {
  auto device =
      std::make_shared<device_attention<half>>(attention_case<half>(make_scene(kind), 16, 9));
  auto workspace = std::make_shared<device_array<std::byte>>(
      static_cast<std::int64_t>(attention_forward_workspace_bytes(device->forward())));
  return {[=](cudaStream_t stream) {
            return attention_forward(device->forward(), workspace->data(), workspace->bytes(),
                                     stream);
          },
          [=] { device->out.poison(); }, [=] { return bytes_of(device->out.to_host()); }};
}

call_instance differentiate(scene kind) {
  attention_case<half> host(make_scene(kind), 16, 9);
  prepare_forward(host);
  auto device = std::make_shared<device_gradients<half>>(host);
  return {[=](cudaStream_t stream) { return device->submit(device->arguments(), stream); },
          [=] { device->poison(); }, [=] { return device->bytes(); }};
}

const std::vector<call_row>& rows() {
  static const std::vector<call_row> all = {
      {"build_partition, cubic", [] { return build_points(cubes); }},
      {"build_partition, spherical", [] { return build_points(sectors()); }},
      {"build_partition, labels", [] { return build_labels(); }},
      {"build_partition, grid", [] { return build_grid(false); }},
      {"build_partition, grid and selection", [] { return build_grid(true); }},
      {"build_partitions", [] { return build_both(); }},
      {"copy_counts", [] { return fetch_counts(); }},
      {"window_importance", [] { return measure_importance(); }},
      {"select_most_important", [] { return rank(500); }},
      {"select_most_important, more than 8192 windows", [] { return rank(10000); }},
      {"select_above", [] { return threshold(); }},
      {"select_window_mask", [] { return window_mask(); }},
      {"select_token_mask", [] { return token_mask(); }},
      {"attention_forward, plain", [] { return attend(scene::plain); }},
      {"attention_forward, contextual", [] { return attend(scene::cubic); }},
      {"attention_forward, bias", [] { return attend(scene::grid); }},
      {"attention_backward, plain", [] { return differentiate(scene::plain); }},
      {"attention_backward, contextual", [] { return differentiate(scene::cubic); }},
      {"attention_backward, bias", [] { return differentiate(scene::grid); }},
  };
  return all;
}

/// What the table's column says a call launches, by the row's name: "3" or "2 to 9".
std::map<std::string, std::pair<int, int>> launches_of_table() {
  std::map<std::string, std::pair<int, int>> result;
  std::ifstream file(WINNOW_CALLS_TABLE);
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> cells;
    std::istringstream text(line);
    for (std::string cell; std::getline(text, cell, '|');) {
      const std::size_t first = cell.find_first_not_of(' ');
      const std::size_t last = cell.find_last_not_of(' ');
      cells.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
    }
    if (cells.size() < 4) continue;
    std::string name;
    for (const char c : cells[1])
      if (c != '`') name += c;
    int least = 0;
    int most = 0;
    const int numbers = std::sscanf(cells[3].c_str(), "%d to %d", &least, &most);
    if (numbers >= 1) result[name] = {least, numbers == 2 ? most : least};
  }
  return result;
}

class device_call : public ::testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override { WINNOW_SKIP_WITHOUT_GPU(); }
  static const call_row& row() { return rows()[GetParam()]; }
  static bytes run(const call_instance& call, cudaStream_t stream) {
    const status done = call.submit(stream);
    EXPECT_TRUE(done.ok()) << done.message();
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    return call.result();
  }
};

// A capture in the global mode refuses allocations and synchronisation, whoever asks for them. It is the
// instance's first call, so that memory which a call would make once and keep shows up too.
TEST_P(device_call, is_captured_and_launches_what_the_table_says) {
  const device_stream stream;
  const call_instance call = row().make();
  call.poison();
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
  const status done = call.submit(stream);
  check_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
  ASSERT_TRUE(done.ok()) << done.message();

  std::size_t count = 0;
  check_cuda(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(count);
  check_cuda(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    check_cuda(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    EXPECT_TRUE(type == cudaGraphNodeTypeKernel || type == cudaGraphNodeTypeMemset ||
                type == cudaGraphNodeTypeMemcpy)
        << "a node of type " << type;
  }
  const auto table = launches_of_table();
  const auto found = table.find(row().name);
  ASSERT_NE(found, table.end()) << "docs/calls.md has no row `" << row().name << "`";
  EXPECT_TRUE(static_cast<int>(count) >= found->second.first &&
              static_cast<int>(count) <= found->second.second)
      << "docs/calls.md, `" << row().name << "`: launches " << count;

  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  check_cuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
  stream.synchronize();
  const bytes replayed = call.result();
  call.poison();
  EXPECT_EQ(run(call, stream), replayed);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_P(device_call, allocates_nothing) {
  const device_stream stream;
  const call_instance call = row().make();
  run(call, stream);  // loads kernels
  // Other programs may use the GPU meanwhile, but not in every try.
  bool refused = false, kept = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!kept && std::chrono::steady_clock::now() < end) {
    std::size_t before = 0, after = 0, all = 0;
    check_cuda(cudaMemGetInfo(&before, &all), "cudaMemGetInfo");
    limit_allocations(0);
    const status done = call.submit(stream);
    refused = refused || allocation_was_refused();
    limit_allocations(-1);
    ASSERT_TRUE(done.ok()) << done.message();
    check_cuda(cudaMemGetInfo(&after, &all), "cudaMemGetInfo");
    kept = before == after;
    if (!kept) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stream.synchronize();
  EXPECT_FALSE(refused) << "on the host";
  EXPECT_TRUE(kept) << "on the device";
}

TEST_P(device_call, repeats_bit_for_bit_from_several_threads) {
  constexpr int count = 4;
  std::vector<call_instance> calls;
  for (int i = 0; i < count; ++i) {
    calls.push_back(row().make());
    calls.back().poison();
  }
  const device_stream first;
  const bytes expected = run(calls[0], first);
  std::vector<std::string> failures(count);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      const auto index = static_cast<std::size_t>(i);
      const device_stream stream;
      for (int turn = 0; turn < 10; ++turn) {
        const status done = calls[index].submit(stream);
        if (!done.ok()) failures[index] = done.message();
      }
      check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < count; ++i) {
    EXPECT_EQ(failures[static_cast<std::size_t>(i)], "");
    EXPECT_EQ(calls[static_cast<std::size_t>(i)].result(), expected) << "thread " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(rows, device_call, ::testing::Range(std::size_t{0}, rows().size()),
                         [](const auto& test) {
                           std::string name;
                           for (const char c : rows()[test.param].name)
                             name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

// The host's part of a device call: sizes, bindings, checks.
TEST(host_queries, allocate_nothing) {
  const random_points points(10, 1, 1.0f, 1);
  std::vector<std::byte> memory(4096);
  const point_partition items[] = {{cubes, {}}};
  limit_allocations(0);
  const partition_shape shape = shape_of(cubes, 10);
  partition bound;
  const status done = bind_partition(shape, memory.data(), memory.size(), bound);
  window_selection shorter;
  const status cut = prefix(uniform_selection(1, 9, 5, nullptr), 3, shorter);
  const std::size_t sizes[] = {
      partition_bytes(shape),
      build_partition_workspace_bytes(cubes, points.view()),
      build_partitions_workspace_bytes(items, 1, points.view()),
      select_above_workspace_bytes(1, 100),
      select_token_mask_workspace_bytes(image),
      select_window_mask_workspace_bytes(1, 100),
      select_most_important_workspace_bytes(1, 100),
      attention_forward_workspace_bytes(attention_forward_arguments<void>{}),
      attention_backward_workspace_bytes(attention_backward_arguments<void>{})};
  const status rejected = validate(attention_forward_arguments<void>{});
  const status flags = check_flags({});
  const bool refused = allocation_was_refused();
  limit_allocations(-1);
  EXPECT_FALSE(refused);
  EXPECT_TRUE(done.ok()) << done.message();
  EXPECT_TRUE(cut.ok() && flags.ok());
  EXPECT_FALSE(rejected.ok());
  EXPECT_GT(sizes[0], 0u);
}

}  // namespace
}  // namespace winnow::test
