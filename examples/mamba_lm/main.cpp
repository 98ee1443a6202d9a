// mamba-lm: look at a Mamba language model, evaluate it, generate with it, time it.
#include "commands.hpp"

int main(int argc, char** argv) {
  CLI::App app("Mamba language models whose state is a value: stop anywhere, go on elsewhere.",
               "mamba-lm");
  app.require_subcommand(1);
  Command command;
  add_info(app, command);
  add_logits(app, command);
  add_generate(app, command);
  add_bench(app, command);
  return run_program(app, argc, argv, [&] { return command(); });
}
