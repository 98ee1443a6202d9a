// The texts of config.json and generation_config.json beyond what a caller has to know.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mamba/config.hpp>

namespace mamba {

// The ids that end a text by generation_config.json, which go before those of config.json; nothing
// if it has none. `where` names the file in the FormatError of one that cannot be.
std::optional<std::vector<std::int32_t>> parse_generation_config(const std::string& json_text,
                                                                 const std::string& where);

// As to_json(config), with the ids that end a text once more under the key that goes before
// generation_config.json: for a folder whose generation_config.json says others.
std::string to_json_with_own_end(const LanguageModelConfig& config);

}  // namespace mamba
