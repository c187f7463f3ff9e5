// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/device_memory.hpp"
#include "swin/images.hpp"
#include "winnow/storage.hpp"

namespace winnow::swin {

/// One batch in device memory, from image `first` on, around the end if need be, in the storage type.
support::device_memory upload_batch(const image_set& images, int first, const image_size& size,
                                    dtype type);

}  // namespace winnow::swin
