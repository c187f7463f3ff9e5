// SPDX-License-Identifier: Apache-2.0
#include "replay/replay_case.hpp"

#include <limits>
#include <string_view>

#include "support/input_error.hpp"
#include "support/read_file.hpp"

namespace winnow::replay {
namespace {

using support::input_error;
using support::npy_element;
using shape = std::vector<std::int64_t>;

/// Reads arrays of one folder by name and checks what they must be.
class array_reader {
 public:
  explicit array_reader(std::filesystem::path folder) : folder_(std::move(folder)) {}

  [[nodiscard]] std::filesystem::path path_of(const std::string& name) const {
    return folder_ / (name + ".npy");
  }
  [[nodiscard]] bool has(const std::string& name) const {
    return std::filesystem::exists(path_of(name));
  }
  [[noreturn]] void fail(const std::string& name, const std::string& what_is_wrong) const {
    throw input_error(path_of(name).string(), what_is_wrong);
  }

  [[nodiscard]] npy_array read(const std::string& name, npy_element element) const {
    npy_array array = support::read_npy(path_of(name));
    if (array.element != element) {
      fail(name, std::string("elements are ") + support::descriptor_of(array.element) +
                     ", must be " + support::descriptor_of(element));
    }
    return array;
  }
  [[nodiscard]] npy_array read(const std::string& name, npy_element element,
                               const shape& expected) const {
    npy_array array = read(name, element);
    if (array.shape != expected) {
      fail(name, "shape is " + support::shape_text(array.shape) + ", must be " +
                     support::shape_text(expected));
    }
    return array;
  }
  [[nodiscard]] std::optional<npy_array> read_if_present(const std::string& name,
                                                         npy_element element,
                                                         const shape& expected) const {
    if (!has(name)) return std::nullopt;
    return read(name, element, expected);
  }

 private:
  std::filesystem::path folder_;
};

/// Rows of a contextual table by the window's quant length.
std::int64_t table_rows(const any_window& window, bool has_radius) {
  if (const auto* cubic = std::get_if<cubic_window>(&window)) return 2 * cubic->quant_length - 1;
  if (const auto* spherical = std::get_if<spherical_window>(&window)) {
    return 2 * spherical->quant_length;
  }
  return 2 * std::get<labels_window>(window).quant_length - (has_radius ? 0 : 1);
}

/// The quant length that a table of labels windows implies.
int quant_length_of(const array_reader& reader, const std::string& table, bool has_radius) {
  const npy_array array = reader.read(table, npy_element::float32);
  const std::int64_t rows = array.shape.empty() ? 0 : array.shape[0];
  const std::int64_t quant_length = has_radius ? rows / 2 : (rows + 1) / 2;
  if (quant_length < 1 || quant_length > max_quant_length || rows % 2 != (has_radius ? 0 : 1)) {
    reader.fail(table, "shape is " + support::shape_text(array.shape) +
                           ", which has no quant length L of 1 to 256 with " +
                           (has_radius ? "2L" : "2L - 1") + " rows");
  }
  return static_cast<int>(quant_length);
}

void read_labels(const array_reader& reader, const std::string& suffix, const attention_case& whole,
                 group_case& group) {
  group.labels = reader.read("labels" + suffix, npy_element::int32, {whole.tokens});
  auto& window = std::get<labels_window>(group.window);
  if (group.position == position_encoding::none) {
    window.quant_length = 1;
    return;
  }
  group.positions = reader.read("positions" + suffix, npy_element::int32, {whole.tokens, 3});
  group.radius = reader.read_if_present("radius" + suffix, npy_element::float32, {whole.tokens});
  if (group.radius.has_value() != (window.exponential_a > 0.0f)) {
    reader.fail("radius" + suffix,
                "and \"exponential_a\" in case.json go together, one is missing");
  }
  for (const char* table : {"table_q", "table_k", "table_v"}) {
    if (window.quant_length == 0 && reader.has(table + suffix)) {
      window.quant_length = quant_length_of(reader, table + suffix, group.radius.has_value());
    }
  }
}

void read_tables(const array_reader& reader, const std::string& suffix, const attention_case& whole,
                 group_case& group) {
  const shape expected = {table_rows(group.window, group.radius.has_value()), 3, group.heads,
                          whole.head_dim};
  const auto read = [&](const char* name) {
    return reader.read_if_present(name + suffix, npy_element::float32, expected);
  };
  group.table_q = read("table_q");
  group.table_k = read("table_k");
  group.table_v = read("table_v");
  if (!group.table_q && !group.table_k && !group.table_v) {
    reader.fail("table_q" + suffix, "contextual position needs a table_q, table_k or table_v");
  }
}

void read_group(const array_reader& reader, const std::string& suffix, const attention_case& whole,
                group_case& group) {
  if (std::holds_alternative<labels_window>(group.window)) {
    read_labels(reader, suffix, whole, group);
  }
  if (const auto* grid = std::get_if<grid_window>(&group.window)) {
    if (grid->tokens() != whole.tokens) {
      reader.fail("q", "has " + std::to_string(whole.tokens) + " tokens, but the grid has " +
                           std::to_string(grid->tokens()));
    }
    if (reader.has("kept" + suffix)) {
      group.kept = reader.read("kept" + suffix, npy_element::int32);
      if (group.kept->shape.size() != 2 || group.kept->shape[0] != grid->batch) {
        reader.fail("kept" + suffix, "shape is " + support::shape_text(group.kept->shape) +
                                         ", must be (" + std::to_string(grid->batch) + ", K)");
      }
    }
    if (group.position == position_encoding::bias) {
      const std::int64_t edge = 2 * grid->window - 1;
      group.bias_table =
          reader.read("bias_table" + suffix, npy_element::float32, {edge * edge, group.heads});
    }
  } else if (group.position == position_encoding::contextual) {
    read_tables(reader, suffix, whole, group);
  }
}

attention_case read_attention(const array_reader& reader, const attention_spec& spec,
                              const std::string& json_name) {
  attention_case result;
  result.scale = spec.scale;
  result.suffixed = spec.suffixed;
  result.q = reader.read("q", npy_element::float32);
  const shape& tokens_shape = result.q.shape;
  if (tokens_shape.size() != 3 || tokens_shape[1] < 1 || tokens_shape[2] < 1 ||
      tokens_shape[1] > std::numeric_limits<int>::max()) {
    reader.fail("q", "shape is " + support::shape_text(tokens_shape) + ", must be (N, H, D)");
  }
  result.tokens = tokens_shape[0];
  result.heads = tokens_shape[1];
  result.head_dim = tokens_shape[2];
  result.k = reader.read("k", npy_element::float32, tokens_shape);
  result.v = reader.read("v", npy_element::float32, tokens_shape);
  result.grad_out = reader.read_if_present("grad_out", npy_element::float32, tokens_shape);

  std::int64_t heads = 0;
  for (std::size_t g = 0; g < spec.groups.size(); ++g) {
    group_case& group = result.groups.emplace_back();
    group.heads = spec.suffixed ? spec.groups[g].heads : static_cast<int>(result.heads);
    group.window = spec.groups[g].window;
    group.position = spec.groups[g].position;
    heads += group.heads;
    const bool has_points = std::holds_alternative<cubic_window>(group.window) ||
                            std::holds_alternative<spherical_window>(group.window);
    if (has_points && !result.coords) {
      result.coords = reader.read("coords", npy_element::float32, {result.tokens, 3});
      result.batch = reader.read_if_present("batch", npy_element::int32, {result.tokens});
    }
  }
  if (heads != result.heads) {
    throw input_error(json_name, "head_groups: their heads add up to " + std::to_string(heads) +
                                     ", but q has " + std::to_string(result.heads));
  }
  for (std::size_t g = 0; g < result.groups.size(); ++g) {
    read_group(reader, spec.suffixed ? "." + std::to_string(g) : "", result, result.groups[g]);
  }
  return result;
}

selection_case read_selection(const array_reader& reader, const selection_spec& spec) {
  selection_case result{spec.grid, spec.prune_ratio, reader.read("features", npy_element::float32)};
  const std::int64_t pixels = std::int64_t{spec.grid.height} * spec.grid.width;
  const shape& actual = result.features.shape;
  if (actual.size() != 3 || actual[0] != spec.grid.batch || actual[1] != pixels || actual[2] < 1) {
    reader.fail("features", "shape is " + support::shape_text(actual) + ", must be (" +
                                std::to_string(spec.grid.batch) + ", " + std::to_string(pixels) +
                                ", C)");
  }
  return result;
}

}  // namespace

replay_case read_case(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw input_error(folder.string(), "no such directory");
  }
  const std::filesystem::path json_path = folder / "case.json";
  const std::vector<std::byte> bytes = support::read_file(json_path);
  const case_spec spec = parse_case_json(
      {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, json_path.string());
  const array_reader reader(folder);
  if (const auto* selection = std::get_if<selection_spec>(&spec)) {
    return read_selection(reader, *selection);
  }
  return read_attention(reader, std::get<attention_spec>(spec), json_path.string());
}

}  // namespace winnow::replay
