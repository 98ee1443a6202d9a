// A tokenizer.json, then a NUL, then a text for it.
#include <mamba/tokenizer.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static fuzz::MemoryFile file;
  const std::string all = fuzz::text_of(data, size);
  const std::size_t end = std::min(all.find('\0'), all.size());
  file.write(all.substr(0, end));
  fuzz::accepted([&] {
    const mamba::Tokenizer tokenizer = mamba::Tokenizer::load(file.path());
    for (const std::int32_t id : tokenizer.encode(all.substr(end))) {
      fuzz::expect(id >= 0 && id < tokenizer.vocab_size());
      tokenizer.decode({id});
    }
  });
  return 0;
}
