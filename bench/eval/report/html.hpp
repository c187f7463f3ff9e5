// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace winnow::eval::report {

/// Text as HTML or SVG content or attribute value.
std::string escaped(std::string_view text);

/// "2 deg, 2 deg, 80 m" as "2° × 2° × 80 m".
std::string size_text(std::string_view size);

/// A table's cell: a number as text and, if it is to be compared, a bar below it.
struct cell {
  std::string text;
  std::string note{};    ///< small, below
  double bar = -1.0;     ///< filled part, 0 to 1; negative: no bar
  bool other = false;    ///< the bar stands for another system
  bool is_over = false;  ///< beyond its limit

  cell(std::string text_) : text(std::move(text_)) {}
  cell(std::string text_, double bar_, bool other_ = false)
      : text(std::move(text_)), bar(bar_), other(other_) {}
};

/// A table whose rows may come in groups, each under a title.
class table {
 public:
  /// \param caption text. \param columns their titles, that of the rows' titles first.
  table(const std::string& caption, const std::vector<std::string>& columns);
  void group(const std::string& title);
  /// \throw std::logic_error for an empty cell or a wrong number of cells.
  void row(const std::string& title, const std::vector<cell>& cells);
  /// A box that scrolls where the table is wider than the screen.
  [[nodiscard]] std::string html() const;

 private:
  std::size_t columns_;
  bool is_grouped_ = false;
  std::string head_, body_;
};

}  // namespace winnow::eval::report
