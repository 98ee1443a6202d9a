// What all programs have in common: a command line, errors of one line, an exit code.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>

constexpr int exit_error = 1;
constexpr int exit_interrupted = 130;  // 128 + SIGINT, as a shell reports it
constexpr int exit_closed = 141;       // 128 + SIGPIPE

// Reads the command line of `app`, which has the program's name and is given --version, and runs
// `body`; its result is the exit code. What goes wrong is one line on standard error that begins
// with the program's name, and exit_error. An option with an empty value is such an error. Output
// that nobody reads any more ends it without a word.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body);
