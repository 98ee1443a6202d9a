// mamba-lm generate: reads a prompt, writes what follows, stops anywhere and goes on from there.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/generator.hpp>
#include <mamba/speculative.hpp>
#include <mamba/state_cache.hpp>

#include "../programs/interrupt.hpp"
#include "../programs/output.hpp"
#include "commands.hpp"
#include "prompt_flags.hpp"
#include "sampling_flags.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Ids = std::vector<std::int32_t>;

struct GenerateFlags {
  ModelFlags model;
  SamplingFlags sampling;
  PromptFlags prompt;
  std::string form;  // "ids", "text"; empty: as the prompt was given
  std::int64_t max_tokens = 128;
  std::int64_t chunk = 512;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::string save_state;
  std::string resume;
  std::string draft;
  std::int64_t proposals = 4;
  std::string cache;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What turns text into ids for this model, read only where text is wanted: ids need none.
std::optional<mamba::Tokenizer> tokenizer_of(const GenerateFlags& flags,
                                             const mamba::LanguageModel& model) {
  const char* flag = flags.prompt.is_text() ? flags.prompt.name()
                     : !flags.stop.empty()  ? "--stop"
                     : flags.form == "text" ? "--as text"
                                            : nullptr;
  if (flag == nullptr) return std::nullopt;
  return flags.model.load_tokenizer("generate", flag, model,
                                    " (--prompt-ids and --as ids do without)");
}

// What was generated, on standard output, as soon as it is there.
class Output {
 public:
  // False if it cannot be written any more.
  bool id(std::int32_t token) {
    ids_ = true;
    return text((any_ ? " " : "") + std::to_string(token));
  }

  bool text(std::string_view text) {
    if (failure_) return false;
    any_ = true;
    if (!text.empty()) last_ = text.back();
    try {
      write_output("generate", text);
    } catch (...) {
      failure_ = std::current_exception();
    }
    return !failure_;
  }

  void end_line() {
    if (ids_) text("\n");
  }
  bool inside_line() const { return any_ && last_ != '\n'; }

  void check() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  bool any_ = false;
  char last_ = '\n';
  bool ids_ = false;
  std::exception_ptr failure_;
};

// A line on a terminal that is rewritten while a long prompt is read. Nothing where nobody watches.
class Progress {
 public:
  explicit Progress(std::size_t total) : total_(total), shown_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (any_) std::fputs("\r\033[K", stderr);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(std::size_t done) {
    constexpr double interval = 0.1;  // more often is only work for the terminal
    if (!shown_ || (any_ && seconds_since(last_) < interval)) return;
    std::fprintf(stderr, "\rreading the prompt: %zu of %zu tokens, %.0f tok/s", done, total_,
                 static_cast<double>(done) / seconds_since(start_));
    any_ = true;
    last_ = Clock::now();
  }

 private:
  std::size_t total_;
  bool shown_;
  bool any_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_;
};

// What a generator is helped by; each may be absent.
struct Helpers {
  // A small model that proposes tokens.
  struct Draft {
    mamba::LanguageModel model;
    mamba::Generator generator;
    mamba::Speculation speculation;
    Draft(const ModelFlags& which, mamba::Generator& target, std::int64_t proposals)
        : model(which.load("generate")),
          generator(model, target.options(), target.stream()),
          speculation(target, generator, proposals) {}
  };
  std::optional<Draft> draft;
  std::optional<mamba::StateCache> cache;

  Helpers(const GenerateFlags& flags, mamba::Generator& target) {
    ModelFlags which = flags.model;
    which.folder = flags.draft;
    if (!flags.draft.empty()) draft.emplace(which, target, flags.proposals);
    if (!flags.cache.empty()) cache.emplace(target.model(), file_cache("mamba-lm", flags.cache));
  }
};

struct Read {
  std::size_t known = 0;  // tokens of the prompt that the cache knew
  std::size_t done = 0;   // with those; all of them unless interrupted
};

// Reads the prompt piece by piece.
Read read_prompt(mamba::Generator& generator, mamba::StateCache* cache, const Ids& prompt,
                 std::int64_t chunk) {
  Progress progress(prompt.size());
  Read read;
  if (cache != nullptr) {
    read.known = static_cast<std::size_t>(cache->find(generator, prompt));
    read.done = read.known;
  }
  const auto place = [&](std::size_t at) {
    return prompt.begin() + static_cast<std::ptrdiff_t>(at);
  };
  while (read.done < prompt.size() && !interrupted()) {
    // Pieces end at multiples of the chunk: what two prompts share is then known in the same
    // pieces.
    const auto piece = static_cast<std::size_t>(chunk);
    const std::size_t end = std::min((read.done / piece + 1) * piece, prompt.size());
    generator.read(Ids(place(read.done), place(end)));
    if (cache != nullptr) cache->keep(generator, Ids(place(0), place(end)));
    read.done = end;
    if (read.done < prompt.size()) progress.show(read.done);
  }
  return read;
}

std::size_t write_tokens(mamba::Generator& generator, Helpers& helpers, const GenerateFlags& flags,
                         const mamba::Tokenizer* tokenizer, Output& output) {
  const bool as_text = flags.form.empty() ? flags.prompt.is_text() : flags.form == "text";
  mamba::GenerateOptions options;
  options.max_tokens = flags.max_tokens;
  options.ignore_eos = flags.ignore_eos;
  options.stop = flags.stop;
  options.tokenizer = tokenizer;
  options.on_token = [&](std::int32_t token) {
    return (as_text || output.id(token)) && !interrupted();
  };
  if (as_text) options.on_text = [&](std::string_view text) { return output.text(text); };
  const mamba::Generated generated =
      helpers.draft ? helpers.draft->speculation.generate(options) : generator.generate(options);
  // Half a character goes into the state file, to be completed by whoever goes on from there.
  if (as_text && flags.save_state.empty()) output.text(generator.finish_text());
  return generated.tokens.size();
}

mamba::Generator make_generator(const GenerateFlags& flags, const mamba::LanguageModel& model,
                                mamba::Stream& stream) {
  if (flags.resume.empty()) return mamba::Generator(model, flags.sampling.options(), stream);
  mamba::Generator generator = mamba::Generator::restore(flags.resume, model, stream);
  flags.sampling.check_agree(generator.options(), flags.resume);
  return generator;
}

// Whether what is printed on standard output and on standard error meets on one screen.
bool same_terminal() {
  struct stat out;
  struct stat err;
  return isatty(STDOUT_FILENO) != 0 && isatty(STDERR_FILENO) != 0 &&
         fstat(STDOUT_FILENO, &out) == 0 && fstat(STDERR_FILENO, &err) == 0 &&
         out.st_rdev == err.st_rdev;
}

struct Work {
  Read read;
  double read_seconds = 0;
  std::size_t written = 0;
  double write_seconds = 0;
};

void report(const Work& work, std::size_t prompt, const Helpers& helpers) {
  const auto speed = [](std::size_t tokens, double seconds) {
    return tokens == 0 ? 0.0 : static_cast<double>(tokens) / std::max(seconds, 1e-9);
  };
  std::fprintf(stderr, "mamba-lm: prompt %zu tokens, ", work.read.done);
  if (helpers.cache) std::fprintf(stderr, "%zu of them known, ", work.read.known);
  std::fprintf(stderr, "%.1f tok/s; generated %zu tokens, %.1f tok/s",
               speed(work.read.done - work.read.known, work.read_seconds), work.written,
               speed(work.written, work.write_seconds));
  if (helpers.draft) {
    const mamba::SpeculationCounts& counts = helpers.draft->speculation.counts();
    std::fprintf(stderr, "; took %lld of %lld proposals", static_cast<long long>(counts.accepted),
                 static_cast<long long>(counts.proposed));
  }
  std::fputc('\n', stderr);
  if (work.read.done < prompt) {
    std::fprintf(stderr, "mamba-lm: stopped after %zu of %zu prompt tokens\n", work.read.done,
                 prompt);
  }
}

void check_flags(const GenerateFlags& flags) {
  if (!flags.prompt.any() && flags.resume.empty()) {
    throw mamba::ArgumentError("generate", "prompt",
                               "--prompt, --prompt-file, --prompt-ids or --resume", "none");
  }
  const auto without_resume = [&](const char* flag, const std::string& value, const char* why) {
    if (value.empty() || flags.resume.empty()) return;
    throw mamba::ArgumentError("generate", flag, std::string("no --resume (") + why + ")", "both");
  };
  without_resume("--draft", flags.draft, "a state file has not what a draft has seen");
  without_resume("--cache", flags.cache, "a cache knows how texts begin");
  if (!flags.save_state.empty()) check_can_write("generate", "--save-state", flags.save_state);
}

int generate(GenerateFlags& flags) {
  check_flags(flags);
  flags.prompt.load();  // an interrupt ends a wait for standard input
  catch_interrupts();
  const mamba::LanguageModel model = flags.model.load("generate");
  const std::optional<mamba::Tokenizer> tokenizer = tokenizer_of(flags, model);
  const Ids prompt = flags.prompt.read(tokenizer ? &*tokenizer : nullptr, model.config().vocab_size,
                                       !flags.resume.empty());
  mamba::Stream stream = flags.model.stream();
  mamba::Generator generator = make_generator(flags, model, stream);

  Helpers helpers(flags, generator);

  Work work;
  const auto start = Clock::now();
  work.read =
      read_prompt(generator, helpers.cache ? &*helpers.cache : nullptr, prompt, flags.chunk);
  if (helpers.draft) read_prompt(helpers.draft->generator, nullptr, prompt, flags.chunk);
  work.read_seconds = seconds_since(start);

  const auto written_from = Clock::now();
  Output output;
  if (!interrupted()) {
    work.written =
        write_tokens(generator, helpers, flags, tokenizer ? &*tokenizer : nullptr, output);
  }
  work.write_seconds = seconds_since(written_from);

  output.end_line();
  // What was saved there before is worth more than a state that has seen nothing new.
  const bool idle = interrupted() && work.read.done + work.written == 0;
  if (!flags.save_state.empty() && !idle) generator.save(flags.save_state);
  output.check();  // after the state is safe
  if (output.inside_line() && same_terminal()) std::fputc('\n', stderr);
  report(work, prompt.size(), helpers);
  return interrupted() ? exit_interrupted : 0;
}

void add_prompt_flags(CLI::App& sub, GenerateFlags& flags) {
  flags.prompt.add(sub);
  flags.model.add_tokenizer(sub);
  sub.add_option("--as", flags.form,
                 "Print the new tokens as ids or as text (default: as the prompt was given; ids "
                 "without one)")
      ->check(CLI::IsMember({"ids", "text"}));
  sub.add_option("--chunk", flags.chunk, "Prompt tokens per call; memory grows with it")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str();
}

void add_helper_flags(CLI::App& sub, GenerateFlags& flags) {
  CLI::Option* draft = sub.add_option("--draft", flags.draft,
                                      "Folder of a smaller model with the same tokens, which "
                                      "guesses several ahead: the same text, sooner");
  sub.add_option("--proposals", flags.proposals, "Tokens to guess at a time, 64 at most")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str()
      ->needs(draft);
  add_cache(sub, flags.cache);
}

}  // namespace

void add_generate(CLI::App& app, Command& command) {
  CLI::App* sub = app.add_subcommand(
      "generate",
      "What follows a prompt: new tokens on standard output, all else on standard error");
  const auto flags = std::make_shared<GenerateFlags>();
  flags->model.add_folder(*sub);
  add_prompt_flags(*sub, *flags);
  sub->add_option("-n", flags->max_tokens, "New tokens at most")
      ->check(whole_number<std::int64_t>(0))
      ->capture_default_str();
  sub->add_option("--stop", flags->stop, "Stop after this text; may be given several times")
      ->allow_extra_args(false);
  sub->add_flag("--ignore-eos", flags->ignore_eos,
                "Go on after the end-of-text token of config.json");
  sub->add_option("--save-state", flags->save_state,
                  "Write all that is needed to go on, also on Ctrl-C");
  sub->add_option("--resume", flags->resume, "Go on from such a file; a prompt is read after it");
  add_helper_flags(*sub, *flags);
  flags->sampling.add(*sub);
  flags->model.add_placement(*sub);
  sub->callback([flags, &command] { command = [flags] { return generate(*flags); }; });
}
