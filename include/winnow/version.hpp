// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The version of the headers. CMakeLists.txt reads it from here, so it is stated once.
#define WINNOW_VERSION_MAJOR 0
#define WINNOW_VERSION_MINOR 1
#define WINNOW_VERSION_PATCH 0
