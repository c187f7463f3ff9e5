# SPDX-License-Identifier: Apache-2.0
target_sources(winnow_support PRIVATE support/compare.cpp support/npy.cpp support/read_file.cpp)
if(WINNOW_CUDA)
  target_sources(winnow_support PRIVATE support/device_call.cpp)
endif()

if(WINNOW_BUILD_TOOLS)
  find_package(nlohmann_json REQUIRED)
  find_package(CLI11 REQUIRED)

  # Apart from main.cpp, so that tests and fuzzers can drive the reader.
  add_library(winnow_replay STATIC replay/case_spec.cpp replay/replay_case.cpp
                                   replay/run_case.cpp replay/cpu_executor.cpp
                                   replay/cuda_executor.cpp)
  target_link_libraries(winnow_replay PUBLIC winnow_support
                                      PRIVATE winnow_warnings nlohmann_json::nlohmann_json)

  add_executable(winnow-replay replay/main.cpp)
  target_link_libraries(winnow-replay PRIVATE winnow_replay winnow_warnings CLI11::CLI11)
endif()
