// SPDX-License-Identifier: Apache-2.0
#include "swin/latency.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "swin/graph.hpp"

namespace winnow::swin {
namespace {

using support::check_cuda;

own_graph graph_of(backbone& network, const void* images, backbone::mode what,
                   const backbone::stage_hook& after = {}) {
  return own_graph([&](cudaStream_t stream) { network.forward(images, stream, what, after); });
}

template <class Once>
double repeated(const timing_plan& plan, Once&& once) {
  for (int i = 0; i < plan.warm_up; ++i) once();
  std::vector<double> times;
  for (int i = 0; i < plan.repeats; ++i) times.push_back(once());
  return middle_half(std::move(times));
}

double gpu_time(const own_graph& graph, const timing_plan& plan) {
  const graph_timer timer;
  return repeated(plan, [&] { return timer.time(graph); });
}

double wall_time(const own_graph& graph, const timing_plan& plan) {
  return repeated(plan, [&] {
    const auto begin = std::chrono::steady_clock::now();
    graph.launch();
    graph.wait();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
        .count();
  });
}

std::vector<double> stage_times(backbone& network, const void* images, const timing_plan& plan,
                                std::size_t marks) {
  const std::vector<own_event> events(marks + 1);
  const own_graph graph =
      graph_of(network, images, backbone::mode::complete, [&](int mark, cudaStream_t stream) {
        check_cuda(cudaEventRecordWithFlags(events[static_cast<std::size_t>(mark) + 1].get(),
                                            stream, cudaEventRecordExternal),
                   "cudaEventRecord");
      });
  std::vector<std::vector<double>> times(marks);
  for (int i = 0; i < plan.warm_up + plan.repeats; ++i) {
    check_cuda(cudaEventRecord(events[0].get(), graph.stream()), "cudaEventRecord");
    graph.launch();
    graph.wait();
    if (i < plan.warm_up) continue;
    for (std::size_t m = 0; m < marks; ++m)
      times[m].push_back(graph_timer::milliseconds_between(events[m], events[m + 1]));
  }
  std::vector<double> result;
  for (std::vector<double>& each : times) result.push_back(middle_half(std::move(each)));
  return result;
}

}  // namespace

double middle_half(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto quarter = static_cast<std::ptrdiff_t>(values.size() / 4);
  const auto first = values.begin() + quarter;
  const auto last = values.end() - quarter;
  return std::accumulate(first, last, 0.0) / static_cast<double>(last - first);
}

latency measure(backbone& network, const void* images, const timing_plan& plan) {
  latency result;
  {
    const own_graph graph = graph_of(network, images, backbone::mode::complete);
    result.wall = wall_time(graph, plan);
    result.gpu = gpu_time(graph, plan);
  }
  {
    const own_graph graph = graph_of(network, images, backbone::mode::given_rankings);
    result.choosing = result.gpu - gpu_time(graph, plan);
  }
  result.stages = stage_times(network, images, plan, network.stage_count());
  return result;
}

double measure_wall(backbone& network, const void* images, const timing_plan& plan) {
  return wall_time(graph_of(network, images, backbone::mode::complete), plan);
}

}  // namespace winnow::swin
