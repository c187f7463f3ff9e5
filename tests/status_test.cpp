// SPDX-License-Identifier: Apache-2.0
#include "winnow/status.hpp"

#include <cstring>
#include <string>
#include <type_traits>

#include <gtest/gtest.h>

namespace {

using winnow::status;
using winnow::status_code;

// The message lives in the object: copying and destroying a status runs no code, so none of them
// can allocate or throw.
static_assert(std::is_trivially_copyable_v<status>);
static_assert(std::is_trivially_destructible_v<status>);
static_assert(std::is_nothrow_default_constructible_v<status>);
static_assert(noexcept(status::failure(status_code::cuda_error, "%d", 1)));
static_assert(sizeof(status) <= 256);

TEST(Status, IsOkByDefault) {
  const status result;
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.code(), status_code::ok);
  EXPECT_STREQ(result.message(), "");
}

TEST(Status, FormatsItsMessage) {
  const status result = status::failure(status_code::unsupported, "%s: %d, must be <= %.1f %%",
                                        "head_dim", 136, 128.0);
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.code(), status_code::unsupported);
  EXPECT_STREQ(result.message(), "head_dim: 136, must be <= 128.0 %");
}

TEST(Status, CutsALongMessage) {
  const std::string text(1000, 'x');
  const status result = status::failure(status_code::cuda_error, "%s", text.c_str());
  const std::size_t length = std::strlen(result.message());
  EXPECT_GE(length, 200u);
  EXPECT_LT(length, sizeof(status));
  EXPECT_EQ(result.message(), text.substr(0, length));
}

TEST(Status, KeepsItsMessageWhenCopied) {
  status copy;
  {
    const status original = status::failure(status_code::out_of_memory, "%d bytes", 42);
    copy = original;
  }
  EXPECT_EQ(copy.code(), status_code::out_of_memory);
  EXPECT_STREQ(copy.message(), "42 bytes");
}

TEST(Status, NamesEveryCode) {
  EXPECT_STREQ(to_string(status_code::ok), "ok");
  EXPECT_STREQ(to_string(status_code::invalid_argument), "invalid argument");
  EXPECT_STREQ(to_string(status_code::unsupported), "unsupported");
  EXPECT_STREQ(to_string(status_code::workspace_too_small), "workspace too small");
  EXPECT_STREQ(to_string(status_code::out_of_memory), "out of memory");
  EXPECT_STREQ(to_string(status_code::cuda_error), "CUDA error");
  EXPECT_STREQ(to_string(static_cast<status_code>(99)), "unknown");
}

TEST(Status, TryReturnsTheFirstFailure) {
  int calls = 0;
  const auto step = [&](bool succeed) {
    ++calls;
    return succeed ? status() : status::failure(status_code::cuda_error, "call %d", calls);
  };
  const auto run = [&](bool second) -> status {
    WINNOW_TRY(step(true));
    WINNOW_TRY(step(second));
    WINNOW_TRY(step(true));
    return {};
  };
  EXPECT_TRUE(run(true).ok());
  EXPECT_EQ(calls, 3);
  calls = 0;
  const status failed = run(false);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(failed.code(), status_code::cuda_error);
  EXPECT_STREQ(failed.message(), "call 2");
}

TEST(Status, RequireNamesTheArgument) {
  const auto check = [](int heads) -> status {
    WINNOW_REQUIRE(heads > 0, "heads: %d, must be > 0", heads);
    return {};
  };
  EXPECT_TRUE(check(1).ok());
  const status failed = check(-3);
  EXPECT_EQ(failed.code(), status_code::invalid_argument);
  EXPECT_STREQ(failed.message(), "heads: -3, must be > 0");
}

}  // namespace
