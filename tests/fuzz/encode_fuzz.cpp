// A text through a tokenizer and back: it comes out as it is in NFC, with what is no UTF-8
// replaced.
#include <mamba/tokenizer.hpp>

#include "fuzz.hpp"
#include "host/text/tokenizer_tables.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::Tokenizer tokenizer =
      mamba::Tokenizer::load(fuzz::golden_folder("tokenizer"));
  const std::string text = fuzz::text_of(data, size);
  mamba::TextStream stream;
  std::string valid = stream.push(text);
  valid += stream.finish();
  const std::string back = tokenizer.decode(tokenizer.encode(text));
  fuzz::expect(mamba::to_nfc(back) == mamba::to_nfc(valid));
  fuzz::accepted([&] {  // marks without an end are refused
    fuzz::expect(mamba::to_nfc(valid, 8 + size / 4) == mamba::to_nfc(valid));
  });
  return 0;
}
