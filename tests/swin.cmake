# SPDX-License-Identifier: Apache-2.0
# The Swin backbone: its host twin, and the GPU against it where there is one.
winnow_test(swin_host_test swin_host_test.cpp)
target_link_libraries(swin_host_test PRIVATE winnow_swin_host)
winnow_test(swin_inputs_test swin_inputs_test.cpp)
target_link_libraries(swin_inputs_test PRIVATE winnow_swin_host)
if(WINNOW_CUDA)
  winnow_test(swin_device_test swin_device_test.cpp)
  target_link_libraries(swin_device_test PRIVATE winnow_swin)
endif()
