# SPDX-License-Identifier: Apache-2.0
# Benchmarks of partition and selection on the GPU; built where Google Benchmark is found.
find_package(benchmark QUIET)
if(benchmark_FOUND AND WINNOW_BUILD_BENCH)
  foreach(name partition_bench selection_bench)
    add_executable(${name} ${name}.cu)
    target_link_libraries(${name} PRIVATE winnow::winnow winnow_support winnow_warnings
                                          benchmark::benchmark)
  endforeach()
endif()
