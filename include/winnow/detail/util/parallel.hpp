// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "winnow/status.hpp"

namespace winnow::detail {

/// How many threads a request for `threads` (0: all) means.
inline int thread_count(int threads) noexcept {
  if (threads > 0) return threads;
  const unsigned hardware = std::thread::hardware_concurrency();
  return hardware > 0 ? static_cast<int>(hardware) : 1;
}

/// Calls `body(task)` once for each task in [0, tasks), in any order and from several threads.
///
/// A body may throw std::bad_alloc, which ends the loop early with out_of_memory. Where threads
/// cannot be started, the ones there do the work.
template <class Body>
status parallel_for(std::int64_t tasks, int threads, Body&& body) noexcept {
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> exhausted{false};
  const auto work = [&] {
    try {
      for (std::int64_t task; !exhausted && (task = next.fetch_add(1)) < tasks;) body(task);
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
  };
  const std::int64_t helpers = std::min<std::int64_t>(thread_count(threads), tasks) - 1;
  std::vector<std::thread> pool;
  try {
    for (std::int64_t i = 0; i < helpers; ++i) pool.emplace_back(work);
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (exhausted)
    return status::failure(status_code::out_of_memory, "a temporary could not be allocated");
  return {};
}

/// A half-open range of indices.
struct index_range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  [[nodiscard]] constexpr std::int64_t size() const noexcept { return end - begin; }
};

/// The `part`-th of `parts` nearly equal pieces of [0, total).
constexpr index_range piece(std::int64_t total, std::int64_t parts, std::int64_t part) noexcept {
  const std::int64_t base = total / parts;
  const std::int64_t extra = total % parts;
  const std::int64_t begin = base * part + std::min(part, extra);
  return {begin, begin + base + (part < extra ? 1 : 0)};
}

/// Calls `body(range)` for consecutive ranges that cover [0, total).
template <class Body>
status parallel_ranges(std::int64_t total, int threads, Body&& body) noexcept {
  constexpr std::int64_t length = 16384;
  return parallel_for((total + length - 1) / length, threads, [&](std::int64_t task) {
    body(index_range{task * length, std::min(total, (task + 1) * length)});
  });
}

/// The lowest index in [0, total) that satisfies `predicate`, or `total`.
template <class Predicate>
std::int64_t first_where(std::int64_t total, int threads, Predicate&& predicate) noexcept {
  std::atomic<std::int64_t> first{total};
  // The body allocates nothing, so the loop cannot fail.
  (void)parallel_ranges(total, threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end && i < first; ++i) {
      if (!predicate(i)) continue;
      for (std::int64_t known = first; i < known && !first.compare_exchange_weak(known, i);) {
      }
      return;
    }
  });
  return first;
}

}  // namespace winnow::detail
