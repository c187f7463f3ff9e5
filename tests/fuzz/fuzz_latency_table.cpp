// SPDX-License-Identifier: Apache-2.0
// A latency table's file of any bytes is a table that serves its space, or a status.
//
// The input is a byte that chooses the space, then the file.
#include <cmath>
#include <filesystem>
#include <sstream>
#include <string>

#include "scratch.hpp"
#include "search_spaces.hpp"

namespace {

/// Lines that say something.
int lines_of(const std::string& text) {
  std::istringstream stream(text);
  int count = 0;
  for (std::string line; std::getline(stream, line);)
    count += !line.empty() && line != "\r" && line[0] != '#' ? 1 : 0;
  return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace winnow;
  using namespace winnow::fuzz;
  static const std::string file = scratch_folder("latency_table").string();
  byte_source source(data, size);
  const ratio_space space = make_space(source.pick(space_count));
  const std::string content(reinterpret_cast<const char*>(source.data()), source.left());
  write_scratch(file, content);

  latency_table table;
  if (const status loaded = latency_table::load(file, space, table); !loaded.ok()) {
    require_file_failure(loaded, file);
    require(!table.check(space).ok(), "a failed call has written nothing");
  } else {
    require(table.check(space).ok(), "a table that is read serves its space");
    // Entries are finite, but their sum may not be.
    ratio_levels levels(static_cast<std::size_t>(space.pairs()), 0);
    double latency = 0.0;
    const status summed = table.latency(levels, latency);
    require(!summed.ok() || std::isfinite(latency), "a latency is finite");

    require(table.save(file).ok(), "a table can be saved");
    const std::string saved = read_scratch(file);
    require(lines_of(saved) == lines_of(content), "each entry comes once");
    require(saved.find("inf") == std::string::npos && saved.find("nan") == std::string::npos,
            "entries are finite");
    latency_table again;
    require(latency_table::load(file, space, again).ok(), "a saved table can be read");
    require(again.save(file).ok() && read_scratch(file) == saved, "numbers come back bit for bit");
  }
  std::filesystem::remove(file);
  return 0;
}
