// mamba-lm: look at a Mamba language model, evaluate it, generate with it, time it.
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <string>

#include <mamba/version.hpp>

#include "commands.hpp"

namespace {

constexpr int exit_error = 1;

// Whatever a message contains, an error is one line.
int report(std::string message) {
  for (char& c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::fprintf(stderr, "mamba-lm: %s\n", message.c_str());
  return exit_error;
}

int run(int argc, char** argv) {
  CLI::App app("Mamba language models whose state is a value: stop anywhere, go on elsewhere.",
               "mamba-lm");
  app.set_version_flag("--version", std::string("mamba-lm ") + mamba::version);
  app.require_subcommand(1);
  Command command;
  add_info(app, command);
  add_logits(app, command);
  add_generate(app, command);
  add_bench(app, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(std::string(error.what()) + " (mamba-lm --help tells more)");
  }
  const int code = command();
  // Output to a full disk is no success.
  if (std::fflush(stdout) != 0) return report("standard output cannot be written");
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    return report("not enough memory");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}
