// All bytes of a file, or of standard input.
#pragma once

#include <string>

// What cannot be read is an Error of `program`.
std::string whole_file(const char* program, const std::string& path);
std::string whole_input(const char* program);
