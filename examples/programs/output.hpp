// Standard output that somebody may stop reading, as `head` does.
#pragma once

#include <string_view>

// Nobody reads standard output any more: a program ends, without a word, as one that SIGPIPE ended.
struct OutputClosed {};

// Writes all of it at once, so that a reader sees it now. OutputClosed where there is no reader;
// what else goes wrong is an Error of `program`.
void write_output(const char* program, std::string_view text);
