// SPDX-License-Identifier: Apache-2.0
// The attention calls of this project, for head dims that winnow's library was not compiled for.
#pragma once

#include <cstddef>

#include "winnow/attention.hpp"
#include "winnow/storage.hpp"

winnow::status forward(const winnow::attention_forward_arguments<winnow::half>& arguments,
                       cudaStream_t stream);

std::size_t backward_workspace_bytes(
    const winnow::attention_backward_arguments<winnow::half>& arguments);
winnow::status backward(const winnow::attention_backward_arguments<winnow::half>& arguments,
                        void* workspace, std::size_t workspace_bytes, cudaStream_t stream);
