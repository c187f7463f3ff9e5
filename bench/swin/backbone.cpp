// SPDX-License-Identifier: Apache-2.0
// A block computes compact rows, window after window, so that a matrix product sees nothing but kept
// windows and attention a partition that is the identity. How rows and tokens belong together is known
// to the norms alone (norms.cu). A position inside a window and its side of the seam is all that attention
// needs to know about the image.
#include "swin/backbone.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "winnow/detail/partition/grid.hpp"

namespace winnow::swin {
namespace {

using support::check_cuda;
using support::device_memory;

constexpr std::size_t element_bytes = 2;

std::size_t index(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

void* at_element(const device_memory& memory, std::int64_t element) {
  return memory.as<std::byte>() + index(element) * element_bytes;
}

template <class T>
void upload(const device_memory& memory, const std::vector<T>& values) {
  memory.upload(values.data(), values.size() * sizeof(T));
}

template <class T>
std::vector<T> download(const device_memory& memory, std::int64_t count) {
  std::vector<T> values(index(count));
  memory.download(values.data(), values.size() * sizeof(T));
  return values;
}

std::string stage_name(int stage, const char* rest) {
  return "stages." + std::to_string(stage) + rest;
}

}  // namespace

backbone::backbone(const model& network, const device_weights& arrays, matrix_products& products,
                   const image_size& size)
    : network_(network), arrays_(arrays), products_(products), size_(size) {
  check(size);
  if (map_of_stage(size, 0).windows_per_image() > max_ranked_windows)
    throw support::input_error("image", std::to_string(size.height) + " x " +
                                            std::to_string(size.width) + " has more than " +
                                            std::to_string(max_ranked_windows) + " windows");
  stages_.resize(index(network.stages()));
  for (int s = 0; s < network.stages(); ++s) make_stage(s);
  make_shared_buffers();
  prune_ratios dense;
  for (const int depth : network.depths) dense.emplace_back(index(depth), 0.0);
  set_prune(dense);
}

void backbone::make_stage(int stage) {
  stage_state& state = stages_[index(stage)];
  state.map = map_of_stage(size_, stage);
  state.windows = static_cast<int>(state.map.windows_per_image());
  const std::size_t bytes = index(output_elements(stage)) * element_bytes;
  state.stream = allocate(bytes);
  state.output = allocate(bytes);
  const std::int64_t windows = state.map.windows();
  for (int shifted = 0; shifted < 2; ++shifted) {
    grid_window grid = padded(state.map);
    grid.shift = shifted ? shift_of_odd_blocks : 0;
    std::vector<packed_position> positions;
    for (std::int64_t w = 0; w < windows; ++w)
      for (int t = 0; t < window_tokens; ++t)
        positions.push_back(detail::locate_in_grid(grid, w, t).position);
    state.dense_positions[shifted] = allocate(positions.size() * sizeof(packed_position));
    upload(state.dense_positions[shifted], positions);
    state.ids[shifted] = allocate(index(windows) * sizeof(std::int32_t));
    state.ranks[shifted] = allocate(index(windows) * sizeof(std::int32_t));
    state.importance[shifted] = allocate(index(windows) * sizeof(float));
  }
  state.counts = allocate(index(network_.depth_of(stage)) * sizeof(partition_counts));
}

void backbone::make_shared_buffers() {
  std::int64_t rows = 0, elements = 0, merged = 0;
  for (int s = 0; s < network_.stages(); ++s) {
    const std::int64_t count = at(s).map.windows() * window_tokens;
    rows = std::max(rows, count);
    elements = std::max(elements, count * network_.channels_of(s));
    if (s + 1 < network_.stages())
      merged = std::max(merged, at(s + 1).map.tokens() * 4 * network_.channels_of(s));
  }
  normed_ = allocate(index(elements) * element_bytes);
  change_ = allocate(index(elements) * element_bytes);
  wide_ = allocate(index(std::max(4 * elements, merged)) * element_bytes);
  magnitude_ = allocate(index(at(0).map.tokens()) * sizeof(float));

  std::vector<std::int32_t> order(index(rows)), offsets, bounds;
  std::iota(order.begin(), order.end(), 0);
  for (std::int32_t first = 0; first <= rows; first += window_tokens) offsets.push_back(first);
  for (std::int32_t row = 0; row < rows; ++row) {
    const std::int32_t first = row / window_tokens * window_tokens;
    bounds.push_back(first);
    bounds.push_back(first + window_tokens);
  }
  order_ = allocate(order.size() * sizeof(std::int32_t));
  offsets_ = allocate(offsets.size() * sizeof(std::int32_t));
  bounds_ = allocate(bounds.size() * sizeof(std::int32_t));
  positions_ = allocate(index(rows) * sizeof(packed_position));
  upload(order_, order);
  upload(offsets_, offsets);
  upload(bounds_, bounds);
}

void backbone::set_prune(const prune_ratios& ratios) {
  check(ratios, network_);
  for (int s = 0; s < network_.stages(); ++s) {
    stage_state& state = stages_[index(s)];
    state.pruning = pruning_of(ratios[index(s)], state.map);
    std::vector<partition_counts> counts;
    for (int b = 0; b < network_.depth_of(s); ++b) {
      const block_rows rows = rows_of(s, b);
      counts.push_back({rows.map.batch * rows.kept, rows.count(), rows.count(), window_tokens, 0});
    }
    upload(state.counts, counts);
  }
  visit_products([this](const product& work) { products_.prepare(work); });
}

block_rows backbone::rows_of(int stage, int block) const {
  const stage_state& state = at(stage);
  block_rows rows;
  rows.map = state.map;
  rows.map.shift = shift_of_block(block);
  rows.kept = static_cast<int>(state.pruning.kept[index(block)]);
  if (!state.pruning.pruned[index(block)]) return rows;
  rows.ids = state.ids[block % 2].as<std::int32_t>();
  rows.ranks = state.ranks[block % 2].as<std::int32_t>();
  rows.id_stride = static_cast<int>(state.pruning.longest[block % 2]);
  return rows;
}

std::uint32_t* backbone::positions_of(const block_rows& rows) const {
  return rows.ids != nullptr ? positions_.as<std::uint32_t>() : nullptr;
}

void* backbone::attended(int stage, int block) const {
  return at_element(wide_,
                    std::int64_t{rows_of(stage, block).count()} * 3 * network_.channels_of(stage));
}

product backbone::qkv_product(int stage, int block) const {
  const std::string name = block_prefix(stage, block) + "attn.w_msa.qkv";
  const int channels = network_.channels_of(stage);
  return {epilogue::bias,
          rows_of(stage, block).count(),
          channels,
          3 * channels,
          normed_.data(),
          arrays_.at(name + ".weight"),
          arrays_.at(name + ".bias"),
          wide_.data()};
}

product backbone::projection_product(int stage, int block) const {
  const std::string name = block_prefix(stage, block) + "attn.w_msa.proj";
  const int channels = network_.channels_of(stage);
  return {epilogue::bias,
          rows_of(stage, block).count(),
          channels,
          channels,
          attended(stage, block),
          arrays_.at(name + ".weight"),
          arrays_.at(name + ".bias"),
          change_.data()};
}

product backbone::expansion_product(int stage, int block) const {
  const std::string name = block_prefix(stage, block) + "ffn.layers.0.0";
  const int channels = network_.channels_of(stage);
  return {epilogue::bias_gelu,
          rows_of(stage, block).count(),
          channels,
          mlp_ratio * channels,
          normed_.data(),
          arrays_.at(name + ".weight"),
          arrays_.at(name + ".bias"),
          wide_.data()};
}

product backbone::contraction_product(int stage, int block) const {
  const std::string name = block_prefix(stage, block) + "ffn.layers.1";
  const int channels = network_.channels_of(stage);
  return {
      epilogue::bias, rows_of(stage, block).count(), mlp_ratio * channels,       channels,
      wide_.data(),   arrays_.at(name + ".weight"),  arrays_.at(name + ".bias"), change_.data()};
}

product backbone::merge_product(int stage) const {
  const int channels = network_.channels_of(stage);
  return {epilogue::none, static_cast<int>(at(stage + 1).map.tokens()),
          4 * channels,   2 * channels,
          wide_.data(),   arrays_.at(stage_name(stage, ".downsample.reduction.weight")),
          nullptr,        at(stage + 1).stream.data()};
}

template <class Visit>
void backbone::visit_products(Visit&& visit) const {
  for (int s = 0; s < network_.stages(); ++s) {
    for (int b = 0; b < network_.depth_of(s); ++b) {
      if (fuses(s)) continue;
      visit(qkv_product(s, b));
      visit(projection_product(s, b));
      visit(expansion_product(s, b));
      visit(contraction_product(s, b));
    }
    if (s + 1 < network_.stages()) visit(merge_product(s));
  }
}

void backbone::forward(const void* images, cudaStream_t stream, mode what,
                       const stage_hook& after) {
  images_ = images;
  for (int s = 0; s < network_.stages(); ++s) {
    run_stage(s, what, stream);
    if (after) after(s, stream);
  }
}

void backbone::run_stage(int stage, mode what, cudaStream_t stream) {
  int previous = -1;  // the block whose change has not been added yet
  for (int b = 0; b < network_.depth_of(stage); ++b) {
    const bool ranks = b == at(stage).pruning.ranked_at && what == mode::complete;
    const bool computes = at(stage).pruning.kept[index(b)] > 0;
    const bool embeds = stage == 0 && b == 0;
    if (!ranks && !computes && !embeds) continue;
    if (fuses(stage))
      prepare_fused(stage, b, ranks, stream);
    else
      prepare_rows(stage, b, previous, ranks, stream);
    previous = -1;
    if (!computes) continue;
    run_block(stage, b, stream);
    previous = fuses(stage) ? -1 : b;
  }
  end_stage(stage, previous, stream);
}

/// In front of a fused block: patches are embedded and windows ranked where that is due.
void backbone::prepare_fused(int stage, int block, bool ranks, cudaStream_t stream) {
  float* magnitude = ranks ? magnitude_.as<float>() : nullptr;
  if (stage == 0 && block == 0) {
    embed(magnitude, stream);
  } else if (ranks) {
    token_update update = token_update_of(stage, -1);
    update.magnitude = magnitude;
    check_cuda(launch_token_update(type(), update, stream), "token update");
  }
  if (ranks) check_cuda(launch_ranking(ranking_of(stage), stream), "ranking");
}

/// In front of the other blocks: what the previous one left is added, windows are ranked where that is
/// due, and the norm goes to the rows of this block.
void backbone::prepare_rows(int stage, int block, int previous, bool ranks, cudaStream_t stream) {
  token_update update = token_update_of(stage, previous);
  row_update start;
  start.channels = network_.channels_of(stage);
  start.block = rows_of(stage, block);
  start.stream = at(stage).stream.data();
  start.rows = normed_.data();
  start.norm = arrays_.norm(block_prefix(stage, block) + "norm1");
  start.positions = positions_of(start.block);
  if (ranks) {
    update.magnitude = magnitude_.as<float>();
    check_cuda(launch_token_update(type(), update, stream), "token update");
    check_cuda(launch_ranking(ranking_of(stage), stream), "ranking");
  } else if (previous >= 0 || start.block.ids == nullptr) {
    update.rows = start.rows;
    update.next = start.block;
    update.norm = start.norm;
    update.positions = start.positions;
    check_cuda(launch_token_update(type(), update, stream), "token update");
    return;
  }
  if (start.block.kept == 0) return;
  check_cuda(launch_row_update(type(), start, stream), "row update");
}

/// \param previous the block whose change is added; -1: none
token_update backbone::token_update_of(int stage, int previous) const {
  token_update update;
  update.channels = network_.channels_of(stage);
  update.map = at(stage).map;
  update.stream = at(stage).stream.data();
  if (previous < 0) return update;
  update.change = change_.data();
  update.changed = rows_of(stage, previous);
  return update;
}

void backbone::embed(float* magnitude, cudaStream_t stream) {
  patch_embedding embedding;
  embedding.size = size_;
  embedding.images = images_;
  embedding.weight = arrays_.at("patch_embed.packed");
  embedding.bias = arrays_.at("patch_embed.projection.bias");
  embedding.norm = arrays_.norm("patch_embed.norm");
  embedding.stream = at(0).stream.data();
  embedding.magnitude = magnitude;
  check_cuda(launch_embedding(type(), embedding, stream), "patch embedding");
}

void backbone::run_block(int stage, int block, cudaStream_t stream) {
  if (fuses(stage)) {
    start_fused(stage, block, stream);
    attend(stage, block, stream);
    finish_fused(stage, block, stream);
    return;
  }
  products_.run(qkv_product(stage, block), stream);
  attend(stage, block, stream);
  products_.run(projection_product(stage, block), stream);
  row_update middle;
  middle.channels = network_.channels_of(stage);
  middle.block = rows_of(stage, block);
  middle.stream = at(stage).stream.data();
  middle.change = change_.data();
  middle.rows = normed_.data();
  middle.norm = arrays_.norm(block_prefix(stage, block) + "norm2");
  check_cuda(launch_row_update(type(), middle, stream), "row update");
  products_.run(expansion_product(stage, block), stream);
  products_.run(contraction_product(stage, block), stream);
}

void backbone::start_fused(int stage, int block, cudaStream_t stream) {
  const std::string prefix = block_prefix(stage, block);
  fused_qkv start;
  start.block = rows_of(stage, block);
  start.stream = at(stage).stream.data();
  start.norm = arrays_.norm(prefix + "norm1");
  start.matrix = arrays_.at(prefix + "qkv");
  start.bias = arrays_.at(prefix + "attn.w_msa.qkv.bias");
  start.rows = wide_.data();
  start.positions = positions_of(start.block);
  check_cuda(launch_fused_qkv(type(), start, stream), "q, k, v");
}

void backbone::finish_fused(int stage, int block, cudaStream_t stream) {
  const std::string prefix = block_prefix(stage, block);
  fused_mlp rest;
  rest.block = rows_of(stage, block);
  rest.stream = at(stage).stream.data();
  rest.attended = attended(stage, block);
  rest.projection_bias = arrays_.at(prefix + "attn.w_msa.proj.bias");
  rest.norm = arrays_.norm(prefix + "norm2");
  rest.matrices = arrays_.at(prefix + "mlp");
  rest.hidden_bias = arrays_.at(prefix + "ffn.layers.0.0.bias");
  rest.bias = arrays_.at(prefix + "ffn.layers.1.bias");
  check_cuda(launch_fused_mlp(type(), rest, stream), "MLP");
}

void backbone::attend(int stage, int block, cudaStream_t stream) {
  const stage_state& state = at(stage);
  const std::int64_t rows = rows_of(stage, block).count();
  const int heads = network_.heads_of(stage);
  const std::int64_t channels = network_.channels_of(stage);
  const std::int64_t dim = channels / heads;

  head_group<> group;
  group.heads = heads;
  group.position = position_encoding::bias;
  group.bias_table = {
      arrays_.at(block_prefix(stage, block) + "attn.w_msa.relative_position_bias_table"),
      type(),
      {bias_rows, heads}};
  group.windows.max_tokens = rows;
  group.windows.max_windows = rows / window_tokens;
  group.windows.counts = state.counts.as<partition_counts>() + block;
  group.windows.order = order_.as<std::int32_t>();
  group.windows.offsets = offsets_.as<std::int32_t>();
  group.windows.bounds = bounds_.as<std::int32_t>();
  group.windows.position = state.pruning.pruned[index(block)]
                               ? positions_.as<packed_position>()
                               : state.dense_positions[block % 2].as<packed_position>();
  group.windows.relative = {relative_kind::grid, window_edge, 0.0f};

  attention_forward_arguments<> arguments;
  const tensor_layout<3> slice = {{rows, heads, dim}, {3 * channels, dim, 1}};
  arguments.q = {wide_.data(), type(), slice};
  arguments.k = {at_element(wide_, channels), type(), slice};
  arguments.v = {at_element(wide_, 2 * channels), type(), slice};
  arguments.out = {attended(stage, block), type(), {rows, heads, dim}};
  arguments.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  arguments.groups = &group;
  arguments.group_count = 1;
  const status outcome = attention_forward(arguments, nullptr, 0, stream);
  if (!outcome.ok()) throw std::runtime_error(std::string("attention: ") + outcome.message());
}

void backbone::end_stage(int stage, int previous, cudaStream_t stream) {
  const bool merges = stage + 1 < network_.stages();
  stage_end end;
  end.channels = network_.channels_of(stage);
  end.map = at(stage).map;
  end.stream = at(stage).stream.data();
  if (previous >= 0) {
    end.change = change_.data();
    end.changed = rows_of(stage, previous);
  }
  end.output = at(stage).output.data();
  end.norm = arrays_.norm("norm" + std::to_string(stage));
  if (merges) {
    end.merged = wide_.data();
    end.merge_norm = arrays_.norm(stage_name(stage, ".downsample.norm"));
  }
  check_cuda(launch_stage_end(type(), end, stream), "stage end");
  if (merges) products_.run(merge_product(stage), stream);
}

ranking backbone::ranking_of(int stage) const {
  const stage_state& state = at(stage);
  ranking work;
  work.map = state.map;
  work.windows = state.windows;
  work.magnitude = magnitude_.as<float>();
  for (int shifted = 0; shifted < 2; ++shifted) {
    work.longest[shifted] = static_cast<int>(state.pruning.longest[shifted]);
    const std::vector<bool>& pruned = state.pruning.pruned;
    bool wanted = false;
    for (std::size_t b = index(shifted); b < pruned.size(); b += 2) wanted |= pruned[b];
    if (!wanted) continue;
    work.ids[shifted] = state.ids[shifted].as<std::int32_t>();
    work.ranks[shifted] = state.ranks[shifted].as<std::int32_t>();
    work.importance[shifted] = state.importance[shifted].as<float>();
  }
  return work;
}

std::vector<stage_ranking> backbone::rankings() const {
  check_cuda(cudaDeviceSynchronize(), "the forward");
  std::vector<stage_ranking> result(stages_.size());
  for (std::size_t s = 0; s < stages_.size(); ++s)
    for (int shifted = 0; shifted < 2; ++shifted)
      result[s].ids[shifted] = download<std::int32_t>(
          stages_[s].ids[shifted], size_.batch * stages_[s].pruning.longest[shifted]);
  return result;
}

std::vector<float> backbone::importance(int stage, int shifted) const {
  check_cuda(cudaDeviceSynchronize(), "the forward");
  return download<float>(at(stage).importance[shifted], at(stage).map.windows());
}

}  // namespace winnow::swin
