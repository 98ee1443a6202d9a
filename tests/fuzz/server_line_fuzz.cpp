// A line that comes to mamba-server --lines.
#include <stdexcept>

#include "fuzz.hpp"
#include "server/line_request.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::Tokenizer tokenizer = mamba::Tokenizer::bytes();
  server::LineRequest request;
  try {
    server::parse(fuzz::text_of(data, size), tokenizer, request);
  } catch (const std::invalid_argument&) {
  } catch (const mamba::Error&) {
  }
  server::LineRequest answer;  // the id is what an answer begins with
  server::parse(R"({"prompt":"a","id":)" + request.id + "}", tokenizer, answer);
  fuzz::expect(answer.id == request.id);
  return 0;
}
