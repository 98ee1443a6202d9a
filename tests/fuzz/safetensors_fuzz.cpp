// A safetensors file, with every tensor in it.
#include <mamba/safetensors.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::accepted([&] {
    const mamba::SafetensorsFile tensors(mamba::ByteView(data, size));
    for (const mamba::SafetensorsEntry& entry : tensors.entries()) {
      fuzz::expect(tensors.bytes(entry).size() == static_cast<std::size_t>(entry.bytes));
      fuzz::accepted([&] { tensors.read(entry); });
    }
  });
  return 0;
}
