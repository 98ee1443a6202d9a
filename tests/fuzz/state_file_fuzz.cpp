// A state file. What is accepted has the shapes that it says.
#include <mamba/state_file.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::accepted([&] {
    const mamba::SavedState saved = mamba::load_state(mamba::ByteView(data, size));
    fuzz::expect(!saved.state.layers.empty());
    const std::int64_t rows = saved.state.layers.front().batch();
    const auto& seen = saved.metadata.tokens_seen;
    fuzz::expect(seen.empty() || static_cast<std::int64_t>(seen.size()) == rows);
  });
  return 0;
}
