// Prompts as lines of JSON on standard input, many at once, answers as lines of JSON on standard
// output.
//
//   in   {"id": 1, "prompt": "In the beginning", "max_tokens": 50, "temperature": 0.8}
//   out  {"id":1,"text":" was the"}                                as it is written
//        {"id":1,"done":"max_tokens","prompt_tokens":16,"tokens":50}
//        {"id":1,"error":"..."}                                    a line that asks nothing, or
//                                                                  an answer that cannot go on
//
// Further keys: seed, top_k, top_p, min_p, repetition_penalty, stop (a text or a list of them),
// ignore_eos. null is as if the key were not there; a temperature of 0 is greedy, whatever else is
// said. The id may be any JSON value. Ends at the end of its input, when all is answered; Ctrl-C
// ends every answer with "done":"interrupted", also those that had not begun.
//
// With a cache, beginnings of prompts that were read before are not read again, and "done" lines
// say how many tokens were known: "known_tokens".
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace server {

// `capacity`: of the engine. `with_cache`: whether it has a cache.
void serve_lines(Engine& engine, std::int64_t capacity, bool with_cache);

}  // namespace server
