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

  add_executable(
    winnow-eval
    eval/array.cpp
    eval/attention_calls.cpp
    eval/cpu_backend.cpp
    eval/cuda_backend.cpp
    eval/evaluation.cpp
    eval/inputs.cpp
    eval/json_report.cpp
    eval/machine.cpp
    eval/main.cpp
    eval/memory_counter.cpp
    eval/options.cpp
    eval/printing.cpp
    eval/statistics.cpp)
  add_dependencies(winnow-eval winnow_build_info)
  target_include_directories(winnow-eval PRIVATE ${eval_generated_dir})
  target_link_libraries(winnow-eval PRIVATE winnow_support winnow_warnings CLI11::CLI11
                                            nlohmann_json::nlohmann_json)
endif()
