// SPDX-License-Identifier: Apache-2.0
/// \file
/// How long a forward takes, measured as SparseViT does: warm up, repeat, sort, average the middle half.
#pragma once

#include <functional>
#include <vector>

#include "swin/backbone.hpp"

namespace winnow::swin {

struct timing_plan {
  int warm_up = 500;
  int repeats = 500;
};

/// Milliseconds of one batch.
struct latency {
  double gpu = 0.0;   ///< between events around the launch of the graph
  double wall = 0.0;  ///< of the host, from the launch until the result is there
  /// Each stage, the first with the patch embedding, from a graph with events between them, which cost
  /// a little.
  std::vector<double> stages;
  /// What ranking the windows adds to `gpu`: the difference to a graph that is given the rankings.
  double choosing = 0.0;
};

/// The mean of the middle half.
double middle_half(std::vector<double> values);

/// One forward of the network as it is set, in one CUDA graph.
latency measure(backbone& network, const void* images, const timing_plan& plan);
/// Only the wall time.
double measure_wall(backbone& network, const void* images, const timing_plan& plan);

}  // namespace winnow::swin
