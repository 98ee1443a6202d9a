// save_safetensors() without its last step.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <mamba/safetensors.hpp>

#include "host/files/atomic_file.hpp"

namespace mamba {

// What save_safetensors() writes, without commit().
void write_safetensors(AtomicFile& file, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata);

}  // namespace mamba
