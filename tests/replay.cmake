# SPDX-License-Identifier: Apache-2.0
winnow_test(npy_test npy_test.cpp)
winnow_test(compare_test compare_test.cpp)

if(WINNOW_BUILD_TOOLS)
  winnow_test(replay_test replay_test.cpp)
  add_dependencies(replay_test winnow-replay)
  target_compile_definitions(
    replay_test PRIVATE WINNOW_REPLAY="$<TARGET_FILE:winnow-replay>"
                        WINNOW_TEST_CASES="${CMAKE_CURRENT_LIST_DIR}/cases")

  # Every committed case in every storage type.
  file(GLOB case_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cases/*/case.json)
  foreach(case_file IN LISTS case_files)
    cmake_path(GET case_file PARENT_PATH case_folder)
    cmake_path(GET case_folder FILENAME case_name)
    foreach(storage fp32 fp16 bf16)
      add_test(NAME replay.${case_name}.${storage}
               COMMAND winnow-replay ${case_folder} --check --dtype ${storage})
      if(WINNOW_CUDA)
        add_test(NAME replay.${case_name}.${storage}.cuda
                 COMMAND winnow-replay ${case_folder} --check --dtype ${storage} --device cuda)
        set_tests_properties(replay.${case_name}.${storage}.cuda
                             PROPERTIES SKIP_REGULAR_EXPRESSION "no GPU can be used")
      endif()
    endforeach()
  endforeach()
endif()

# The cases are what their script writes, and its gradients pass finite differences.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "import numpy" RESULT_VARIABLE no_numpy
                  OUTPUT_QUIET ERROR_QUIET)
  if(no_numpy EQUAL 0)
    add_test(NAME replay.cases COMMAND ${Python3_EXECUTABLE} -B
                                       ${CMAKE_CURRENT_LIST_DIR}/cases/make_cases.py --check)
  endif()
endif()
