// Bytes to a TextStream, in pieces: it gives the same text as in one, which is valid UTF-8.
#include <mamba/tokenizer.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes = fuzz::text_of(data, size);
  mamba::TextStream stream, whole, again;
  std::string text;
  for (std::size_t at = 0; at < size;) {
    const std::size_t length = std::min<std::size_t>(1 + data[at] % 5, size - at);
    text += stream.push(bytes.substr(at, length));
    fuzz::expect(stream.held().size() <= 3);
    at += length;
  }
  text += stream.finish();
  std::string wanted = whole.push(bytes);
  wanted += whole.finish();
  fuzz::expect(text == wanted);
  fuzz::expect(again.push(text) == text && again.finish().empty());
  return 0;
}
