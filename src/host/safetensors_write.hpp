// save_safetensors() without its last step.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <mamba/safetensors.hpp>

#include "host/atomic_file.hpp"

namespace mamba {

// All of the file's bytes; it appears under its name with file.commit(). Errors are those of
// save_safetensors.
void write_safetensors(AtomicFile& file, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata);

}  // namespace mamba
