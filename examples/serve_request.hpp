// What a line that comes to serve asks for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/generator.hpp>

struct Request {
  std::string id = "null";  // as JSON
  std::vector<std::int32_t> prompt;
  mamba::SamplingOptions sampling;
  mamba::GenerateOptions options;
};

// Throws, with what to answer, if the line asks for nothing that can be done. The id is known then
// if the line is JSON.
void parse(const std::string& line, const mamba::Tokenizer& tokenizer, Request& request);
