// What lies in a folder, which may change or go away meanwhile.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

#include <mamba/error.hpp>

namespace mamba {

// Makes `folder` and those above it, unless they are there. What the system refuses is an Error
// "where: folder: expected a folder, got <its reason>".
inline void make_folder(const std::string& where, const std::string& folder) {
  std::error_code error, unknown;
  if (folder.find('\0') != std::string::npos) {
    error = std::make_error_code(std::errc::invalid_argument);
  } else {
    std::filesystem::create_directories(folder, error);
    if (std::filesystem::is_directory(folder, unknown)) return;
  }
  throw Error(where, folder, "a folder", error.message());
}

// f(entry) for every entry of `folder`, as far as the system gives them. Not a range-for over a
// directory_iterator: its increment throws a filesystem_error.
template <class F>
void each_entry(const std::string& folder, const F& f) {
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  while (!error && entry != std::filesystem::directory_iterator()) {
    f(*entry);
    entry.increment(error);
  }
}

}  // namespace mamba
