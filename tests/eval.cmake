# SPDX-License-Identifier: Apache-2.0
winnow_test(scan_reader_test scan_reader_test.cpp)
winnow_test(lidar_test lidar_test.cpp)
winnow_test(voxel_test voxel_test.cpp)
winnow_test(scan_workload_test scan_workload_test.cpp)

if(WINNOW_BUILD_TOOLS)
  find_package(nlohmann_json REQUIRED)
  winnow_test(eval_test eval_test.cpp)
  add_dependencies(eval_test winnow-eval)
  target_link_libraries(eval_test PRIVATE nlohmann_json::nlohmann_json)
  target_compile_definitions(eval_test PRIVATE WINNOW_EVAL="$<TARGET_FILE:winnow-eval>")
endif()
