// SPDX-License-Identifier: Apache-2.0
/// \file
/// winnow-replay: runs a case from a folder of .npy files and compares it with its expectation.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "replay/run_case.hpp"
#include "support/compare.hpp"
#include "support/input_error.hpp"

namespace winnow::replay {
namespace {

namespace fs = std::filesystem;
using support::comparison;
using support::input_error;

enum exit_code : int { success = 0, check_failed = 1, bad_input = 2 };

struct options {
  std::string folder;
  std::string device = "cpu";
  std::string storage = "fp32";
  std::string out;
  bool check = false;
  std::optional<double> tolerance;  ///< absent: the precision limits of the storage type
};

std::unique_ptr<executor> executor_for(const std::string& device) {
  return device == "cuda" ? make_cuda_executor() : make_cpu_executor();
}

dtype dtype_of(const std::string& storage) {
  return storage == "fp16" ? dtype::float16 : storage == "bf16" ? dtype::bfloat16 : dtype::float32;
}

bool starts_with(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

double tolerance_of(const std::string& name, const options& chosen) {
  if (starts_with(name, "kept")) return 0.0;
  if (chosen.tolerance) return *chosen.tolerance;
  const bool table = starts_with(name, "grad_table") || starts_with(name, "grad_bias_table");
  return support::precision_limit(dtype_of(chosen.storage),
                                  table                       ? support::quantity::table_gradient
                                  : starts_with(name, "grad") ? support::quantity::gradient
                                                              : support::quantity::output);
}

struct checked_array {
  std::string name;
  comparison result;
};

/// Compares every result that `folder` has a reference of. An expectation without a result is an
/// error, because it would pass unseen.
std::vector<checked_array> check(const case_results& results, const fs::path& folder,
                                 const options& chosen) {
  if (!fs::is_directory(folder)) throw input_error(folder.string(), "no such directory");
  for (const auto& entry : fs::directory_iterator(folder)) {
    const bool known = entry.path().extension() != ".npy" ||
                       std::any_of(results.begin(), results.end(), [&](const named_array& result) {
                         return entry.path().stem() == result.name;
                       });
    if (!known) throw input_error(entry.path().string(), "the case has no such result");
  }

  std::vector<checked_array> checked;
  for (const named_array& result : results) {
    const fs::path path = folder / (result.name + ".npy");
    if (!fs::exists(path)) continue;
    const npy_array expected = support::read_npy(path);
    if (expected.shape != result.array.shape) {
      throw input_error(path.string(), "shape is " + support::shape_text(expected.shape) +
                                           ", the result's is " +
                                           support::shape_text(result.array.shape));
    }
    const std::int64_t row_length = std::max<std::int64_t>(expected.shape.back(), 1);
    checked.push_back(
        {result.name, support::compare(result.array.to_doubles(), expected.to_doubles(), row_length,
                                       tolerance_of(result.name, chosen))});
  }
  if (checked.empty()) throw input_error(folder.string(), "holds no array to compare");
  return checked;
}

/// Writes all arrays to a folder inside `out` and moves them out of it when they are complete.
void write(const case_results& results, const fs::path& out) {
  const fs::path staging = out / ".winnow-replay.partial";
  std::error_code ignored;
  try {
    fs::create_directories(staging);
    for (const named_array& result : results) {
      support::write_npy(staging / (result.name + ".npy"), result.array.element, result.array.shape,
                         result.array.data.data());
    }
    for (const named_array& result : results) {
      fs::rename(staging / (result.name + ".npy"), out / (result.name + ".npy"));
    }
  } catch (...) {
    fs::remove_all(staging, ignored);
    throw;
  }
  fs::remove(staging, ignored);
}

int replay(const options& chosen) {
  const std::unique_ptr<executor> device = executor_for(chosen.device);
  if (chosen.tolerance && !(std::isfinite(*chosen.tolerance) && *chosen.tolerance > 0.0)) {
    throw input_error("--tolerance", "must be a finite number > 0");
  }
  const fs::path folder = chosen.folder;
  const case_results results =
      run_case(read_case(folder), dtype_of(chosen.storage), folder.string(), *device);
  std::vector<checked_array> checked;
  if (chosen.check) checked = check(results, folder / "expected", chosen);
  if (!chosen.out.empty()) write(results, chosen.out);

  if (!chosen.check) {
    for (const named_array& result : results) {
      std::printf("%s: %s\n", result.name.c_str(), support::shape_text(result.array.shape).c_str());
    }
  }
  bool ok = true;
  for (const checked_array& array : checked) {
    std::printf("%s: %s\n", array.name.c_str(), support::describe(array.result).c_str());
    ok = ok && array.result.ok;
  }
  return ok ? success : check_failed;
}

/// One line on stderr, whatever the message contains.
int report(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "winnow-replay: %s\n", message.c_str());
  return bad_input;
}

}  // namespace
}  // namespace winnow::replay

int main(int argc, char** argv) {
  using namespace winnow::replay;
  options chosen;
  CLI::App app("Runs a winnow regression case and writes or checks its results.", "winnow-replay");
  app.add_option("CASE", chosen.folder, "folder with case.json and the input arrays")->required();
  app.add_option("--device", chosen.device, "cpu or cuda; never falls back to the other")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", chosen.storage, "what inputs and results are rounded to")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}))
      ->capture_default_str();
  app.add_option("--out", chosen.out, "write the results as .npy into this folder")
      ->type_name("DIR");
  auto* check = app.add_flag("--check", chosen.check,
                             "compare with CASE/expected; exit 1 where a tolerance is exceeded");
  app.add_option("--tolerance", chosen.tolerance,
                 "largest relative error of every array; default: winnow's precision limits")
      ->needs(check);
  try {
    app.parse(argc, argv);
    return replay(chosen);
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help
  } catch (const CLI::ParseError& error) {
    return report(error.what());
  } catch (const winnow::support::input_error& error) {
    return report(error.what());
  } catch (const std::bad_alloc&) {
    return report(chosen.folder + ": out of memory");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}
