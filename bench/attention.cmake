# SPDX-License-Identifier: Apache-2.0
# Benchmarks of attention on the GPU; built where Google Benchmark is found.
find_package(benchmark QUIET)
if(benchmark_FOUND AND WINNOW_BUILD_BENCH)
  foreach(direction IN ITEMS forward backward)
    add_executable(attention_${direction}_bench attention_${direction}_bench.cu)
    target_link_libraries(attention_${direction}_bench PRIVATE winnow::winnow winnow_support
                                                               winnow_warnings benchmark::benchmark)
  endforeach()
endif()
