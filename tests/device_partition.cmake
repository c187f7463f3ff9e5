# SPDX-License-Identifier: Apache-2.0
# Partition and selection on the GPU; every test skips, saying so, where there is none.
winnow_test(partition_device_test partition_device_test.cu)
winnow_test(partition_contract_device_test partition_contract_device_test.cu)
winnow_test(partition_lists_device_test partition_lists_device_test.cu)
winnow_test(partition_workload_device_test partition_workload_device_test.cu)
winnow_test(selection_device_test selection_device_test.cu)
