// config.json. What is accepted is written, and read back as the same.
#include <mamba/config.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mamba::LanguageModelConfig config;
  if (!fuzz::accepted([&] { config = mamba::parse_config(fuzz::text_of(data, size), "fuzz"); })) {
    return 0;
  }
  const std::string written = to_json(config);
  fuzz::expect(to_json(mamba::parse_config(written, "written")) == written);
  return 0;
}
