// What lies in a folder, which may change or go away meanwhile.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

namespace mamba {

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
