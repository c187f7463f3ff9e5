// SPDX-License-Identifier: Apache-2.0
// Beside the engine in one project: another user of the same package.
#include "winnow/selection.hpp"
#include "winnow/version.hpp"

static_assert(WINNOW_VERSION_MAJOR == 0, "the engine asks for 0.1");

int main() {
  return winnow::kept_windows(4, 0.25) == 3 ? 0 : 1;
}
