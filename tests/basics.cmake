# SPDX-License-Identifier: Apache-2.0
winnow_test(status_test status_test.cpp)
winnow_test(storage_test storage_test.cpp)
winnow_test(tensor_test tensor_test.cpp)
winnow_test(relative_position_test relative_position_test.cpp)
winnow_test(importance_test importance_test.cpp)
winnow_test(selection_test selection_test.cpp)
winnow_test(calls_test calls_test.cpp support/failing_allocation.cpp)
