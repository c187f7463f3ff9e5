// SPDX-License-Identifier: Apache-2.0
#include "replay/case_spec.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "support/input_error.hpp"

namespace winnow::replay {
namespace {

using nlohmann::json;
using support::input_error;

constexpr int max_int = std::numeric_limits<int>::max();

/// Parses text and refuses repeated keys, of which nlohmann::json would keep the last.
json parse_strictly(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      const auto key = parsed.get<std::string>();
      if (!keys.back().insert(key).second) throw input_error(name, "repeated key " + parsed.dump());
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw input_error(name, std::string("broken JSON: ") + error.what());
  }
}

/// A JSON object of which every value must be asked for: `finish` refuses the keys that were not.
class object_reader {
 public:
  /// \param path where the object is, "" or for example "head_groups[1].window".
  object_reader(const json& value, const std::string& name, std::string path)
      : value_(value), name_(name), path_(std::move(path)) {
    if (!value.is_object()) throw input_error(name_, path_of("") + "must be an object");
  }

  [[nodiscard]] bool has(const char* key) const { return value_.contains(key); }

  const json& at(const char* key) {
    asked_.insert(key);
    const auto found = value_.find(key);
    if (found == value_.end()) {
      throw input_error(name_, path_of("") + "key \"" + key + "\" is missing");
    }
    return *found;
  }

  object_reader object(const char* key) { return {at(key), name_, joined(key)}; }

  int integer(const char* key, int lowest, int highest) {
    const json& value = at(key);
    // As double, because the integers of JSON may exceed every type of ours.
    const double number = value.is_number_integer() ? value.get<double>() : NAN;
    if (!(number >= lowest && number <= highest)) {
      fail(key, "an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return static_cast<int>(number);
  }

  double number(const char* key, double lowest, double highest) {
    const json& value = at(key);
    const double result = value.is_number() ? value.get<double>() : NAN;
    if (!(result >= lowest && result <= highest)) {
      char range[64];
      std::snprintf(range, sizeof range, "a number from %g to %g", lowest, highest);
      fail(key, range);
    }
    return result;
  }

  /// Positive as a float, too.
  float positive(const char* key) {
    return static_cast<float>(
        number(key, std::numeric_limits<float>::min(), std::numeric_limits<float>::max()));
  }

  std::array<double, 3> three(const char* key) {
    const json& value = at(key);
    std::array<double, 3> result{};
    if (!value.is_array() || value.size() != 3) fail(key, "three numbers");
    for (std::size_t axis = 0; axis < 3; ++axis) {
      if (!value[axis].is_number()) fail(key, "three numbers");
      result[axis] = value[axis].get<double>();
    }
    return result;
  }

  bool boolean(const char* key) {
    if (!at(key).is_boolean()) fail(key, "true or false");
    return at(key).get<bool>();
  }

  /// The index of a string among those allowed.
  int choice(const char* key, std::initializer_list<const char*> allowed) {
    const json& value = at(key);
    std::string list;
    int index = 0;
    for (const char* candidate : allowed) {
      if (value == candidate) return index;
      list += std::string(index++ > 0 ? ", " : "") + "\"" + candidate + "\"";
    }
    fail(key, "one of " + list);
  }

  void finish() const {
    for (const auto& [key, value] : value_.items()) {
      if (asked_.count(key) == 0) {
        throw input_error(name_, path_of("") + "unknown key " + json(key).dump());
      }
    }
  }

  [[noreturn]] void fail(const char* key, const std::string& allowed) const {
    std::string shown = value_.at(key).dump(-1, ' ', true, json::error_handler_t::replace);
    if (shown.size() > 40) shown = shown.substr(0, 37) + "...";
    throw input_error(name_, path_of(key) + shown + ", must be " + allowed);
  }

 private:
  [[nodiscard]] std::string joined(const std::string& key) const {
    return path_ + (path_.empty() || key.empty() ? "" : ".") + key;
  }
  [[nodiscard]] std::string path_of(const std::string& key) const {
    const std::string path = joined(key);
    return path.empty() ? "" : path + ": ";
  }

  const json& value_;
  const std::string& name_;
  std::string path_;
  std::set<std::string> asked_;
};

/// What cubic and spherical windows share.
template <class Window>
Window point_window(object_reader& reader) {
  Window window;
  const std::array<double, 3> size = reader.three("size");
  for (std::size_t axis = 0; axis < 3; ++axis) {
    window.size[axis] = static_cast<float>(size[axis]);
    if (!(window.size[axis] > 0.0f) || !std::isfinite(window.size[axis])) {
      reader.fail("size", "three finite numbers > 0");
    }
  }
  window.shifted = reader.boolean("shifted");
  window.quant_length = reader.integer("quant_length", 1, max_quant_length);
  if (reader.has("origin")) window.origin = reader.three("origin");
  return window;
}

cubic_window cubic(object_reader& reader) {
  const auto window = point_window<cubic_window>(reader);
  // Spherical windows have these keys; a cubic case may carry them along without effect.
  if (reader.has("exponential_a")) reader.positive("exponential_a");
  if (reader.has("wrap_theta") && reader.boolean("wrap_theta")) {
    reader.fail("wrap_theta", "false for cubic windows");
  }
  return window;
}

spherical_window spherical(object_reader& reader) {
  auto window = point_window<spherical_window>(reader);
  window.exponential_a = reader.positive("exponential_a");
  window.wrap_theta = reader.has("wrap_theta") && reader.boolean("wrap_theta");
  return window;
}

labels_window labels(object_reader& reader) {
  labels_window window;
  window.quant_length =
      reader.has("quant_length") ? reader.integer("quant_length", 1, max_quant_length) : 0;
  if (reader.has("exponential_a")) window.exponential_a = reader.positive("exponential_a");
  return window;
}

/// "batch", "height", "width", "window" and "shift", as grid windows and selections have them.
grid_window grid(object_reader& reader) {
  grid_window window;
  window.batch = reader.integer("batch", 0, max_int);
  window.height = reader.integer("height", 0, max_int);
  window.width = reader.integer("width", 0, max_int);
  window.window = reader.integer("window", 1, max_quant_length);
  window.shift = reader.integer("shift", 0, window.window - 1);
  if (static_cast<double>(window.batch) * window.height * window.width > max_int) {
    reader.fail("batch", "such that batch * height * width is below 2^31");
  }
  return window;
}

/// "window" and "position", of the whole case or of one head group.
void read_group(object_reader& reader, group_spec& group) {
  object_reader window = reader.object("window");
  switch (window.choice("type", {"cubic", "spherical", "labels", "grid"})) {
    case 0:
      group.window = cubic(window);
      break;
    case 1:
      group.window = spherical(window);
      break;
    case 2:
      group.window = labels(window);
      break;
    default:
      group.window = grid(window);
      break;
  }
  window.finish();
  constexpr position_encoding positions[] = {position_encoding::none, position_encoding::contextual,
                                             position_encoding::bias};
  group.position = positions[reader.choice("position", {"none", "contextual", "bias"})];
  const bool is_grid = std::holds_alternative<grid_window>(group.window);
  if (group.position == position_encoding::bias && !is_grid) {
    reader.fail("position", "\"none\" or \"contextual\" for windows other than a grid");
  }
  if (group.position == position_encoding::contextual && is_grid) {
    reader.fail("position", "\"none\" or \"bias\" for a grid");
  }
}

attention_spec attention(object_reader& reader, const std::string& name) {
  attention_spec spec;
  constexpr double max_float = std::numeric_limits<float>::max();
  spec.scale = static_cast<float>(reader.number("scale", -max_float, max_float));
  spec.suffixed = reader.has("head_groups");
  if (!spec.suffixed) {
    read_group(reader, spec.groups.emplace_back());
    return spec;
  }
  const json& list = reader.at("head_groups");
  if (!list.is_array() || list.empty() || list.size() > std::size_t{max_head_groups}) {
    reader.fail("head_groups", "an array of 1 to " + std::to_string(max_head_groups) + " objects");
  }
  for (std::size_t g = 0; g < list.size(); ++g) {
    object_reader element(list[g], name, "head_groups[" + std::to_string(g) + "]");
    group_spec& group = spec.groups.emplace_back();
    group.heads = element.integer("heads", 1, max_int);
    read_group(element, group);
    element.finish();
  }
  return spec;
}

}  // namespace

case_spec parse_case_json(std::string_view text, const std::string& name) {
  const json root = parse_strictly(text, name);
  object_reader reader(root, name, "");
  case_spec spec;
  if (reader.choice("op", {"window_attention", "window_selection"}) == 0) {
    spec = attention(reader, name);
  } else {
    spec = selection_spec{grid(reader), reader.number("prune_ratio", 0.0, 1.0)};
  }
  reader.finish();
  return spec;
}

}  // namespace winnow::replay
