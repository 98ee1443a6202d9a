// A line that comes to serve.
#include <stdexcept>

#include "fuzz.hpp"
#include "serve_request.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::Tokenizer tokenizer = mamba::Tokenizer::bytes();
  Request request;
  try {
    parse(fuzz::text_of(data, size), tokenizer, request);
  } catch (const std::invalid_argument&) {
  } catch (const mamba::Error&) {
  }
  Request answer;  // the id is what an answer begins with
  parse(R"({"prompt":"a","id":)" + request.id + "}", tokenizer, answer);
  fuzz::expect(answer.id == request.id);
  return 0;
}
