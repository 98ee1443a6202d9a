// The library's JSON. What is accepted is written, and read back as the same.
#include "fuzz.hpp"
#include "host/core/json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mamba::Json json;
  if (!fuzz::accepted([&] { json = mamba::parse_json(fuzz::text_of(data, size), "fuzz"); })) {
    return 0;
  }
  for (const int indent : {-1, 2}) {
    fuzz::expect(mamba::parse_json(json.dump(indent), "written") == json);
  }
  const mamba::Json copy = json;
  fuzz::expect(copy == json && !describe(copy).empty());
  return 0;
}
