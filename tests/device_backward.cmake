# SPDX-License-Identifier: Apache-2.0
# Attention backward on the GPU. The tests skip, visibly, where there is none.
winnow_test(attention_backward_device_test attention_backward_device_test.cu
            attention_backward_call_device_test.cu attention_backward_repeat_device_test.cu
            attention_training_device_test.cpp)
