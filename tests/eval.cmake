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

  winnow_test(report_test report_test.cpp)
  target_link_libraries(report_test PRIVATE winnow_eval)

  # A whole report, looked at by a script and by a browser.
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND)
    set(report ${CMAKE_CURRENT_BINARY_DIR}/report/report.html)
    add_test(NAME report.write COMMAND winnow-eval --max-tokens 3000 --report
                                       ${CMAKE_CURRENT_BINARY_DIR}/report)
    add_test(NAME report.check COMMAND ${Python3_EXECUTABLE}
                                       ${CMAKE_CURRENT_SOURCE_DIR}/report/check_report.py ${report})
    add_test(NAME report.browser COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/report/check_in_browser ${report})
    set_tests_properties(report.write PROPERTIES FIXTURES_SETUP written_report)
    set_tests_properties(report.check report.browser PROPERTIES FIXTURES_REQUIRED written_report)
    set_tests_properties(report.browser PROPERTIES SKIP_RETURN_CODE 77) # where there is no Chromium
  endif()
endif()
