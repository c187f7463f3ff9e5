# SPDX-License-Identifier: Apache-2.0
target_sources(winnow_support PRIVATE support/lidar.cpp support/ply.cpp support/scan_reader.cpp
                                      support/scan_workload.cpp support/voxel.cpp)

if(WINNOW_BUILD_TOOLS)
  find_package(CLI11 REQUIRED)
  find_package(nlohmann_json REQUIRED)

  set(eval_generated_dir ${CMAKE_CURRENT_BINARY_DIR}/eval_generated)
  set(eval_build_info ${eval_generated_dir}/eval/build_info.hpp)
  add_custom_target(
    winnow_build_info
    COMMAND
      ${CMAKE_COMMAND} -D source_dir=${PROJECT_SOURCE_DIR} -D output=${eval_build_info} -D
      version=${PROJECT_VERSION} -D "compiler=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
      -D build_type=$<CONFIG> -P ${CMAKE_CURRENT_SOURCE_DIR}/eval/build_info.cmake
    BYPRODUCTS ${eval_build_info}
    VERBATIM)

  # Everything but main, for the tests too.
  add_library(
    winnow_eval STATIC
    eval/array.cpp
    eval/attention_calls.cpp
    eval/attention_sample.cpp
    eval/cpu_backend.cpp
    eval/cuda_backend.cpp
    eval/evaluation.cpp
    eval/format.cpp
    eval/inputs.cpp
    eval/json_report.cpp
    eval/machine.cpp
    eval/options.cpp
    eval/output_file.cpp
    eval/printing.cpp
    eval/published.cpp
    eval/published_printing.cpp
    eval/report/chart.cpp
    eval/report/html.cpp
    eval/report/page.cpp
    eval/report/png.cpp
    eval/report/published_tables.cpp
    eval/report/scan_picture.cpp
    eval/report/tables.cpp
    eval/report/window_picture.cpp
    eval/statistics.cpp)
  add_dependencies(winnow_eval winnow_build_info)
  target_include_directories(winnow_eval PUBLIC ${eval_generated_dir})
  target_link_libraries(winnow_eval PUBLIC winnow_support nlohmann_json::nlohmann_json
                                    PRIVATE winnow_warnings CLI11::CLI11)

  # The counter replaces operator new, so it belongs to the program alone.
  add_executable(winnow-eval eval/main.cpp eval/memory_counter.cpp)
  target_link_libraries(winnow-eval PRIVATE winnow_eval winnow_warnings)
endif()
