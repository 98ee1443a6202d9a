#include <mamba/tokenizer.hpp>

#include <mamba/error.hpp>

namespace mamba {

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  ids.reserve(text.size());
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (id < 0 || id > 255) {
      throw ArgumentError("Tokenizer::decode", "ids", "0 to 255", std::to_string(id));
    }
    text.push_back(static_cast<char>(id));
  }
  return text;
}

}  // namespace mamba
