// SPDX-License-Identifier: Apache-2.0
#include "eval/report/html.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

namespace winnow::eval::report {
namespace {

std::string to_html(const cell& shown) {
  std::string result = "<td";
  if (shown.is_over) result += " class=\"over\"";
  result += ">" + escaped(shown.text);
  if (!shown.note.empty()) result += "<small>" + escaped(shown.note) + "</small>";
  if (shown.bar >= 0.0) {
    char width[16];
    std::snprintf(width, sizeof width, "%.2f%%", 100.0 * std::min(shown.bar, 1.0));
    result += std::string("<span class=\"bar") + (shown.other ? " other" : "") +
              "\"><i style=\"width:" + width + "\"></i></span>";
  }
  return result + "</td>";
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string size_text(std::string_view size) {
  std::string result(size);
  const auto replace = [&](const std::string& from, const std::string& to) {
    for (std::size_t at = 0; (at = result.find(from, at)) != std::string::npos; at += to.size())
      result.replace(at, from.size(), to);
  };
  replace(" deg", "°");
  replace(", ", " × ");
  return result;
}

table::table(const std::string& caption, const std::vector<std::string>& columns)
    : columns_(columns.size()) {
  head_ = "<table>\n<caption>" + escaped(caption) + "</caption>\n<thead><tr>";
  for (const std::string& each : columns) head_ += "<th scope=\"col\">" + escaped(each) + "</th>";
  head_ += "</tr></thead>\n";
}

void table::group(const std::string& title) {
  if (is_grouped_) body_ += "</tbody>\n";
  is_grouped_ = true;
  body_ += "<tbody><tr><th class=\"group\" scope=\"rowgroup\" colspan=\"" +
           std::to_string(columns_) + "\">" + escaped(title) + "</th></tr>\n";
}

void table::row(const std::string& title, const std::vector<cell>& cells) {
  if (cells.size() + 1 != columns_)
    throw std::logic_error(title + ": a row of " + std::to_string(cells.size()) + " cells");
  if (!is_grouped_) body_ += "<tbody>\n";
  is_grouped_ = true;
  body_ += "<tr><th scope=\"row\">" + escaped(title) + "</th>";
  for (const cell& each : cells) {
    if (each.text.empty()) throw std::logic_error(title + ": an empty cell");
    body_ += to_html(each);
  }
  body_ += "</tr>\n";
}

std::string table::html() const {
  return "<div class=\"scroll\" tabindex=\"0\">" + head_ + body_ + (is_grouped_ ? "</tbody>" : "") +
         "</table></div>\n";
}

}  // namespace winnow::eval::report
