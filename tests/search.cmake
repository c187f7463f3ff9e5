# SPDX-License-Identifier: Apache-2.0
winnow_test(ratio_space_test ratio_space_test.cpp)
winnow_test(ratio_sampler_test ratio_sampler_test.cpp)
winnow_test(latency_table_test latency_table_test.cpp)
winnow_test(pareto_front_test pareto_front_test.cpp)
winnow_test(search_test search_test.cpp)
winnow_test(search_failure_test search_failure_test.cpp support/failing_allocation.cpp)
winnow_test(search_state_test search_state_test.cpp)
