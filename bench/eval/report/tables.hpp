// SPDX-License-Identifier: Apache-2.0
/// \file
/// The report's tables as HTML. Every number in them is read from the results that --json writes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace winnow::eval::report {

/// \param results what `make_json` made.
std::string windows_table(const nlohmann::ordered_json& results);
std::string facts_table(const nlohmann::ordered_json& results);

/// \param windows one kind of windows of the results.
std::string memory_table(const nlohmann::ordered_json& windows);
std::string time_table(const nlohmann::ordered_json& windows);

/// Errors by tensor, as shares of their limits.
/// \param windows one kind of windows. \param attention one of its kinds of attention.
std::string precision_table(const nlohmann::ordered_json& windows,
                            const nlohmann::ordered_json& attention);
/// The same for the gradients of a mean loss, which have no limit of their own.
std::string mean_loss_table(const nlohmann::ordered_json& windows,
                            const nlohmann::ordered_json& attention);

/// Published figures, beside this run's where that is the same benchmark.
std::string published_memory_table(const nlohmann::ordered_json& results);
std::string published_error_table(const nlohmann::ordered_json& results);
std::string published_time_table(const nlohmann::ordered_json& results);

/// "contextual" or "plain"
std::string encoding_of(const nlohmann::ordered_json& attention);

}  // namespace winnow::eval::report
