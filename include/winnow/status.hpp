// SPDX-License-Identifier: Apache-2.0
/// \file
/// The result of every winnow call. No call throws; a failed call has written nothing.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace winnow {

enum class status_code : int {
  ok = 0,
  invalid_argument,     ///< a value, shape, stride or pointer that the contract excludes
  unsupported,          ///< a legal request that this build or this version does not serve
  workspace_too_small,  ///< the caller's memory is smaller than the matching query asked for
  out_of_memory,        ///< host twins only: a temporary could not be allocated
  cuda_error            ///< the CUDA runtime refused a launch or a query
};

/// The short name of a code, as messages and tools print it.
constexpr const char* to_string(status_code code) noexcept {
  switch (code) {
    case status_code::ok:
      return "ok";
    case status_code::invalid_argument:
      return "invalid argument";
    case status_code::unsupported:
      return "unsupported";
    case status_code::workspace_too_small:
      return "workspace too small";
    case status_code::out_of_memory:
      return "out of memory";
    case status_code::cuda_error:
      return "CUDA error";
  }
  return "unknown";
}

/// A code and a message that names the argument, its value and what is allowed.
///
/// The message lives inside the object, so that making a status never allocates.
class [[nodiscard]] status {
 public:
  status() noexcept = default;

  /// Builds a failed status from a printf format; a longer message is cut.
#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  static status
  failure(status_code code, const char* format, ...) noexcept {
    status result;
    result.code_ = code;
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(result.message_, sizeof result.message_, format, arguments);
    va_end(arguments);
    return result;
  }

  [[nodiscard]] bool ok() const noexcept {
    return code_ == status_code::ok;
  }
  [[nodiscard]] status_code code() const noexcept {
    return code_;
  }
  /// Empty when ok.
  [[nodiscard]] const char* message() const noexcept {
    return message_;
  }

 private:
  status_code code_ = status_code::ok;
  char message_[252] = {};
};

}  // namespace winnow

/// Returns from the enclosing function when the expression is a failed status.
#define WINNOW_TRY(...)                                                              \
  do {                                                                               \
    if (::winnow::status winnow_try_status = (__VA_ARGS__); !winnow_try_status.ok()) \
      return winnow_try_status;                                                      \
  } while (false)

/// Fails with `invalid_argument` and a printf message unless `condition` holds.
#define WINNOW_REQUIRE(condition, ...)                                                        \
  do {                                                                                        \
    if (!(condition))                                                                         \
      return ::winnow::status::failure(::winnow::status_code::invalid_argument, __VA_ARGS__); \
  } while (false)
