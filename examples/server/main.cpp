// mamba-server: a model behind HTTP, or behind lines of JSON.
#include <cstdint>
#include <optional>
#include <string>

#include "../programs/interrupt.hpp"
#include "../programs/memory.hpp"
#include "../programs/model_flags.hpp"
#include "../programs/program.hpp"
#include "http_main.hpp"
#include "lines.hpp"

namespace {

constexpr const char* program = "mamba-server";

struct Flags {
  ModelFlags model;
  std::int64_t capacity = 8;
  std::string cache;
  bool lines = false;
  server::HttpFlags http;
};

int serve(const Flags& flags) {
  catch_interrupts();
  const mamba::LanguageModel model = flags.model.load(program);
  const mamba::Tokenizer tokenizer = flags.model.load_tokenizer(program, "tokenizer", model);
  check_memory(
      program, "--capacity", "as many answers at a time",
      static_cast<double>(flags.capacity) * bytes_of_generator(model.config(), model.dtype()),
      model.device());
  mamba::Stream stream = flags.model.stream();
  if (!flags.lines) {
    return server::serve_http(flags.http, flags.model.path(program), model, tokenizer, stream,
                              flags.cache, flags.capacity);
  }
  std::optional<mamba::StateCache> cache;
  if (!flags.cache.empty()) cache.emplace(model, file_cache(program, flags.cache));
  server::EngineOptions options;
  options.capacity = flags.capacity;
  server::Engine engine(model, tokenizer, cache ? &*cache : nullptr, stream, options);
  server::serve_lines(engine, flags.capacity, cache.has_value());
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers prompts, many at once.", program);
  Flags flags;
  flags.model.add_folder(app);
  flags.model.add_tokenizer(app);
  app.add_flag("--lines", flags.lines,
               "Lines of JSON on standard input and output: see examples/server/lines.hpp");
  app.add_option("--capacity", flags.capacity, "Answers at a time")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str();
  add_cache(app, flags.cache);
  flags.model.add_placement(app);
  flags.http.add(app);
  return run_program(app, argc, argv, [&] { return serve(flags); });
}
