// SPDX-License-Identifier: Apache-2.0
#include "support/scan_reader.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "support/npy.hpp"
#include "support/ply.hpp"
#include "support/read_file.hpp"

namespace winnow::support {
namespace {

struct format_name {
  scan_format format;
  const char* name;
};
constexpr format_name format_names[] = {{scan_format::kitti, "kitti"},
                                        {scan_format::nuscenes, "nuscenes"},
                                        {scan_format::xyzrgb, "xyzrgb"},
                                        {scan_format::npy, "npy"},
                                        {scan_format::ply, "ply"}};

bool is_integral(float value) {
  return value == std::floor(value);
}
bool is_within(float value, float low, float high) {
  return value >= low && value <= high;
}

/// A file of bare float32 records.
struct record_layout {
  scan_format format;
  std::size_t columns;
  /// What speaks against the columns after x, y, z; null if nothing does.
  const char* (*objection)(const float* record);
};

const char* object_to_intensity(const float* record) {
  return is_within(record[3], 0.0f, 65535.0f) ? nullptr : "intensity is not in 0 to 65535";
}
const char* object_to_ring(const float* record) {
  if (!is_within(record[3], 0.0f, 255.0f)) return "intensity is not in 0 to 255";
  return is_within(record[4], 0.0f, 127.0f) && is_integral(record[4])
             ? nullptr
             : "ring is not an integer in 0 to 127";
}
const char* object_to_colour(const float* record) {
  for (int c = 3; c < 6; ++c) {
    // Bytes, or fractions of one.
    const bool is_colour = is_within(record[c], 0.0f, 1.0f) ||
                           (is_within(record[c], 0.0f, 255.0f) && is_integral(record[c]));
    if (!is_colour) return "colour is neither an integer in 0 to 255 nor in 0 to 1";
  }
  return nullptr;
}

constexpr record_layout record_layouts[] = {{scan_format::kitti, 4, object_to_intensity},
                                            {scan_format::nuscenes, 5, object_to_ring},
                                            {scan_format::xyzrgb, 6, object_to_colour}};

std::size_t record_size(const record_layout& layout) {
  return layout.columns * sizeof(float);
}

/// Calls `visit(record, index)` for each record until it returns false.
template <class Visit>
void for_each_record(const std::vector<std::byte>& bytes, const record_layout& layout,
                     Visit&& visit) {
  float record[6];
  for (std::size_t n = 0; n < bytes.size() / record_size(layout); ++n) {
    std::memcpy(record, bytes.data() + n * record_size(layout), record_size(layout));
    if (!visit(record, n)) return;
  }
}

std::string axis_of_point(std::size_t index, int axis) {
  return "point " + std::to_string(index) + ": " + "xyz"[axis];
}

/// What speaks against reading the file in this layout; empty if nothing does.
std::string objection_to(const record_layout& layout, const std::vector<std::byte>& bytes) {
  constexpr float farthest = 1e5f;  // metres; also catches NaN and infinity
  std::string objection;
  for_each_record(bytes, layout, [&](const float* record, std::size_t n) {
    for (int axis = 0; axis < 3 && objection.empty(); ++axis) {
      if (!std::isfinite(record[axis])) {
        objection = axis_of_point(n, axis) + " is not finite";
      } else if (std::abs(record[axis]) > farthest) {
        objection = axis_of_point(n, axis) + " is beyond 100 km";
      }
    }
    const char* about_rest = objection.empty() ? layout.objection(record) : nullptr;
    if (about_rest != nullptr) objection = "point " + std::to_string(n) + ": " + about_rest;
    return objection.empty();
  });
  return objection;
}

/// Measured coordinates are hardly ever integers; colours and rings taken for coordinates are.
bool has_integers_for_coordinates(const record_layout& layout,
                                  const std::vector<std::byte>& bytes) {
  std::size_t integers = 0;
  for_each_record(bytes, layout, [&](const float* record, std::size_t) {
    for (int axis = 0; axis < 3; ++axis) integers += record[axis] != 0 && is_integral(record[axis]);
    return true;
  });
  return 10 * integers > 3 * (bytes.size() / record_size(layout));
}

/// The one layout in which the whole file makes sense.
const record_layout& detect(const std::vector<std::byte>& bytes, const std::string& name) {
  std::vector<const record_layout*> consistent;
  std::string objections;
  for (const record_layout& layout : record_layouts) {
    if (bytes.size() % record_size(layout) != 0) continue;
    const std::string objection = objection_to(layout, bytes);
    if (objection.empty()) {
      consistent.push_back(&layout);
    } else {
      objections += (objections.empty() ? "" : "; ") +
                    ("as " + std::string(to_string(layout.format))) + ", " + objection;
    }
  }
  if (consistent.empty() && objections.empty()) {
    throw input_error(name,
                      "truncated or of unknown format: " + std::to_string(bytes.size()) +
                          " bytes are no multiple of 16 (kitti), 20 (nuscenes) or 24 (xyzrgb)");
  }
  if (consistent.empty()) throw input_error(name, "no known format fits: " + objections);
  if (consistent.size() > 1) {
    std::vector<const record_layout*> likely;
    for (const record_layout* layout : consistent) {
      if (!has_integers_for_coordinates(*layout, bytes)) likely.push_back(layout);
    }
    if (likely.size() != 1) {
      throw input_error(name, std::string("reads as ") + to_string(consistent[0]->format) +
                                  " and as " + to_string(consistent[1]->format) +
                                  "; choose with --format");
    }
    consistent = likely;
  }
  return *consistent[0];
}

std::vector<point> parse_records(const std::vector<std::byte>& bytes, const std::string& name,
                                 const record_layout& layout) {
  if (bytes.size() % record_size(layout) != 0) {
    throw input_error(name, "truncated: " + std::to_string(bytes.size()) +
                                " bytes are no multiple of the " +
                                std::to_string(record_size(layout)) + " of a " +
                                to_string(layout.format) + " record");
  }
  std::vector<point> points;
  points.reserve(bytes.size() / record_size(layout));
  for_each_record(bytes, layout, [&](const float* record, std::size_t n) {
    for (int axis = 0; axis < 3; ++axis) {
      if (!std::isfinite(record[axis]))
        throw input_error(name, axis_of_point(n, axis) + " is not finite");
    }
    points.push_back({record[0], record[1], record[2]});
    return true;
  });
  return points;
}

template <class T>
std::vector<point> points_of(const npy_array& array, const std::string& name) {
  const T* elements = array.as<T>();
  const auto rows = static_cast<std::size_t>(array.shape[0]);
  const auto columns = static_cast<std::size_t>(array.shape[1]);
  std::vector<point> points(rows);
  for (std::size_t n = 0; n < rows; ++n) {
    for (int axis = 0; axis < 3; ++axis) {
      const T value = elements[n * columns + static_cast<std::size_t>(axis)];
      if (!(std::abs(value) <= std::numeric_limits<float>::max()))
        throw input_error(name, axis_of_point(n, axis) + " is not finite");
      points[n][axis] = static_cast<float>(value);
    }
  }
  return points;
}

std::vector<point> parse_npy_points(std::vector<std::byte> bytes, const std::string& name) {
  const npy_array array = parse_npy(std::move(bytes), name);
  if (array.shape.size() != 2 || array.shape[1] < 3)
    throw input_error(name,
                      "has shape " + shape_text(array.shape) + ", points need (N, 3 or more)");
  switch (array.element) {
    case npy_element::float32:
      return points_of<float>(array, name);
    case npy_element::float64:
      return points_of<double>(array, name);
    default:
      throw input_error(name, std::string("has elements ") + descriptor_of(array.element) +
                                  ", points need <f4 or <f8");
  }
}

std::string_view text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// .npy and .ply by their first bytes; anything else by its extension, if that claims to be one.
std::optional<scan_format> format_by_header(const std::vector<std::byte>& bytes,
                                            const std::string& name) {
  const std::string_view text = text_of(bytes);
  if (text.substr(0, 6) == "\x93NUMPY") return scan_format::npy;
  if (text.substr(0, 4) == "ply\n" || text.substr(0, 4) == "ply\r") return scan_format::ply;
  const std::string extension = std::filesystem::path(name).extension().string();
  if (extension == ".npy") return scan_format::npy;
  if (extension == ".ply") return scan_format::ply;
  return {};
}

}  // namespace

const char* to_string(scan_format format) noexcept {
  return format_names[static_cast<int>(format)].name;
}

std::optional<scan_format> scan_format_of(std::string_view name) noexcept {
  for (const format_name& each : format_names) {
    if (name == each.name) return each.format;
  }
  return {};
}

scan parse_scan(std::vector<std::byte> bytes, const std::string& name,
                std::optional<scan_format> format) {
  if (bytes.empty()) throw input_error(name, "empty file");
  if (!format) format = format_by_header(bytes, name);
  if (!format) format = detect(bytes, name).format;
  switch (*format) {
    case scan_format::npy:
      return {*format, parse_npy_points(std::move(bytes), name)};
    case scan_format::ply:
      return {*format, parse_ply(text_of(bytes), name)};
    default:
      break;
  }
  return {*format, parse_records(bytes, name, record_layouts[static_cast<int>(*format)])};
}

scan read_scan(const std::filesystem::path& path, std::optional<scan_format> format) {
  return parse_scan(read_file(path), path.string(), format);
}

}  // namespace winnow::support
