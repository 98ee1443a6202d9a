// In a build without Boost.
#include "http_main.hpp"

#include <mamba/error.hpp>

namespace server {

void HttpFlags::add(CLI::App&) {}

int serve_http(const HttpFlags&, const std::string&, const mamba::LanguageModel&,
               const mamba::Tokenizer&, mamba::Stream&, const std::string&, std::int64_t) {
  throw mamba::Error("mamba-server", "HTTP", "a build with Boost 1.81 or newer, or --lines",
                     "a build without");
}

}  // namespace server
