// What a line that comes to mamba-server --lines asks for.
#pragma once

#include <string>

#include "engine.hpp"

namespace server {

struct LineRequest {
  std::string id = "null";  // as JSON
  Job job;
};

// Throws, with what to answer, if the line asks for nothing that can be done. The id is known then
// if the line is JSON.
void parse(const std::string& line, const mamba::Tokenizer& tokenizer, LineRequest& request);

}  // namespace server
