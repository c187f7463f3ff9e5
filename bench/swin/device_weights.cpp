// SPDX-License-Identifier: Apache-2.0
#include "swin/device_weights.hpp"

#include <cstring>

namespace winnow::swin {
namespace {

constexpr std::size_t alignment = 256;

/// From [rows, channels, 4] to [rows, 4, channels].
std::vector<float> by_token(const std::vector<float>& values, std::size_t row_length) {
  const std::size_t channels = row_length / 4;
  std::vector<float> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t inside = i % row_length;
    result[i - inside + inside % 4 * channels + inside / 4] = values[i];
  }
  return result;
}

void append(std::vector<std::byte>& bytes, const std::vector<float>& values, dtype type) {
  for (const float value : values) {
    std::byte element[2];
    if (type == dtype::float16) {
      const half narrow = from_float<half>(value);
      std::memcpy(element, &narrow, 2);
    } else {
      const bfloat16 narrow = from_float<bfloat16>(value);
      std::memcpy(element, &narrow, 2);
    }
    bytes.insert(bytes.end(), element, element + 2);
  }
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

}  // namespace

device_weights::device_weights(const model& network, const weights& arrays, dtype type)
    : type_(type) {
  std::vector<std::byte> bytes;
  for (const weight_spec& spec : weight_specs(network)) {
    offsets_[spec.name] = bytes.size();
    const std::vector<float>& values = arrays.at(spec.name);
    if (spec.name.find(".downsample.") == std::string::npos)
      append(bytes, values, type);
    else
      append(bytes, by_token(values, static_cast<std::size_t>(spec.shape.back())), type);
  }
  if (network.channels == fused_channels) {
    offsets_["patch_embed.packed"] = bytes.size();
    append(bytes, pack_embedding(arrays.at("patch_embed.projection.weight")), type);
    for (int b = 0; b < network.depth_of(0); ++b) {
      const std::string prefix = block_prefix(0, b);
      offsets_[prefix + "qkv"] = bytes.size();
      append(bytes, pack_qkv(arrays.at(prefix + "attn.w_msa.qkv.weight")), type);
      offsets_[prefix + "mlp"] = bytes.size();
      append(bytes,
             pack_mlp(arrays.at(prefix + "attn.w_msa.proj.weight"),
                      arrays.at(prefix + "ffn.layers.0.0.weight"),
                      arrays.at(prefix + "ffn.layers.1.weight")),
             type);
    }
  }
  memory_ = support::device_memory(bytes.data(), bytes.size());
}

}  // namespace winnow::swin
