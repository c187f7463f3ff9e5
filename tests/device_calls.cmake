# SPDX-License-Identifier: Apache-2.0
# What docs/calls.md says about each call, tried on the GPU.
winnow_test(calls_device_test calls_device_test.cpp support/failing_allocation.cpp)
target_compile_definitions(calls_device_test
                           PRIVATE WINNOW_CALLS_TABLE="${PROJECT_SOURCE_DIR}/docs/calls.md")
