# SPDX-License-Identifier: Apache-2.0
# Attention on the GPU. The tests skip, visibly, where there is none.
winnow_test(attention_forward_device_test attention_forward_device_test.cu
            attention_forward_call_device_test.cu attention_forward_repeat_device_test.cu)
