// SPDX-License-Identifier: Apache-2.0
/// \file
/// Everything.
#pragma once

#include "winnow/attention.hpp"
#include "winnow/latency_table.hpp"
#include "winnow/pareto_front.hpp"
#include "winnow/partition.hpp"
#include "winnow/ratio_sampler.hpp"
#include "winnow/ratio_space.hpp"
#include "winnow/reference.hpp"
#include "winnow/relative_position.hpp"
#include "winnow/search.hpp"
#include "winnow/selection.hpp"
#include "winnow/status.hpp"
#include "winnow/storage.hpp"
#include "winnow/tensor.hpp"
#include "winnow/version.hpp"
#include "winnow/window.hpp"
