// Where the byte model that comes with the library lies: in the published format, beside the
// programs.
#pragma once

#include <filesystem>
#include <system_error>

// The folder of the model: model/ beside the running program (a build folder), or
// ../share/mamba/model from it (an installation); empty if it is in neither.
inline std::filesystem::path shipped_model() {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path folder = program.parent_path();
  for (const fs::path& place : {folder / "model", folder / "../share/mamba/model"}) {
    if (fs::is_regular_file(place / "model.safetensors", error)) return fs::canonical(place, error);
  }
  return {};
}
