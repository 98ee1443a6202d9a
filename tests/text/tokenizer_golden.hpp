// What golden/tokenizer has, for tests.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <mamba/tokenizer.hpp>

#include "testing.hpp"

namespace mamba::testing {

using Ids = std::vector<std::int32_t>;

inline std::string unescaped(const std::string& line) {
  std::string text;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      text.push_back(line[i]);
    } else {
      text.push_back(static_cast<char>(std::stoi(line.substr(i + 2, 2), nullptr, 16)));
      i += 3;
    }
  }
  return text;
}

inline Ids parsed(const std::string& text) {
  std::istringstream words(text);
  return Ids(std::istream_iterator<std::int32_t>(words), {});
}

// f(first field, second field) of every line; returns how many.
template <class F>
int each_line(const std::string& name, F f) {
  std::ifstream file(golden_folder("tokenizer/" + name));
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const std::size_t tab = line.find('\t');
    f(line.substr(0, tab), line.substr(tab + 1));
  }
  return lines;
}

inline Tokenizer golden() { return Tokenizer::load(golden_folder("tokenizer")); }

}  // namespace mamba::testing
