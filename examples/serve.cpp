// Answers prompts that come as lines of JSON on standard input, many at once, with lines of JSON on
// standard output: continuous batching without a server around it.
//
//   in   {"id": 1, "prompt": "In the beginning", "max_tokens": 50, "temperature": 0.8}
//   out  {"id":1,"text":" was the"}                                as it is written
//        {"id":1,"done":"max_tokens","prompt_tokens":16,"tokens":50}
//        {"id":1,"error":"..."}                                    a line that asks nothing
//
// Further keys: seed, top_k, top_p, min_p, repetition_penalty, stop (a list), ignore_eos. The id
// may be any JSON value. Ends at the end of its input, when all is answered; Ctrl-C ends every
// answer with "done":"interrupted".
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <mamba/generator.hpp>

#include "mamba_lm/commands.hpp"
#include "programs/interrupt.hpp"

namespace {

using Json = nlohmann::ordered_json;  // keys stay as they are written here
using Ids = std::vector<std::int32_t>;

struct Request {
  Json id;
  Ids prompt;
  mamba::SamplingOptions sampling;
  mamba::GenerateOptions options;
};

struct Answer {
  Request request;
  mamba::Generator generator;
  std::size_t read = 0;  // prompt tokens
  std::int64_t written = 0;
};

// Whole lines only, each in one piece: whatever ends this program, no reader sees half of one.
void put(const Json& line) {
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw mamba::Error("serve", "standard output", "that it can be written", "a failure");
  }
}

// A value of the kind that `field` is: JSON's own conversions cut fractions off and take true
// for 1.
template <class T>
void number(const Json& value, T& field) {
  const bool fits = std::is_floating_point_v<T> ? value.is_number()
                    : std::is_signed_v<T>       ? value.is_number_integer()
                                                : value.is_number_unsigned();
  if (!fits) throw std::invalid_argument(value.dump() + " is not such a number");
  value.get_to(field);
}

void set(Request& request, const std::string& key, const Json& value,
         const mamba::Tokenizer& tokenizer) {
  using Setter = std::function<void(const Json&)>;
  mamba::SamplingOptions& sampling = request.sampling;
  mamba::GenerateOptions& options = request.options;
  const std::map<std::string, Setter> setters{
      {"id", [&](const Json& v) { request.id = v; }},
      {"prompt",
       [&](const Json& v) { request.prompt = tokenizer.encode(v.get_ref<const std::string&>()); }},
      {"max_tokens", [&](const Json& v) { number(v, options.max_tokens); }},
      {"ignore_eos", [&](const Json& v) { options.ignore_eos = v.get<bool>(); }},
      {"stop", [&](const Json& v) { v.get_to(options.stop); }},
      {"temperature", [&](const Json& v) { number(v, sampling.temperature); }},
      {"top_k", [&](const Json& v) { number(v, sampling.top_k); }},
      {"top_p", [&](const Json& v) { number(v, sampling.top_p); }},
      {"min_p", [&](const Json& v) { number(v, sampling.min_p); }},
      {"repetition_penalty", [&](const Json& v) { number(v, sampling.repetition_penalty); }},
      {"seed", [&](const Json& v) { number(v, sampling.seed); }}};
  const auto setter = setters.find(key);
  if (setter == setters.end()) throw std::invalid_argument("no such key");
  setter->second(value);
}

// Throws, with what to answer, if the line asks for nothing that can be done. The id is known then
// if the line is JSON.
void parse(const std::string& line, const mamba::Tokenizer& tokenizer, Request& request) {
  const Json json = Json::parse(line);
  if (!json.is_object()) throw std::invalid_argument("expected an object");
  if (json.contains("id")) request.id = json["id"];
  request.options.tokenizer = &tokenizer;
  for (const auto& [key, value] : json.items()) {
    try {
      set(request, key, value, tokenizer);
    } catch (const std::exception& error) {
      throw std::invalid_argument(key + ": " + error.what());
    }
  }
  request.sampling.check();
  request.options.check();
  if (request.prompt.empty()) throw std::invalid_argument("prompt: none, or an empty one");
}

// Standard input in lines, of which it takes what is there and waits only if told to.
class Input {
 public:
  bool open() const { return open_; }

  void take(bool wait, std::deque<std::string>& lines) {
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    if (poll(&input, 1, wait ? -1 : 0) <= 0) return;  // an interrupt ends the wait too
    char buffer[65536];
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (count > 0) part_.append(buffer, static_cast<std::size_t>(count));
    if (count <= 0) open_ = false;
    if (!open_ && !part_.empty()) part_ += '\n';  // the last line may have no end
    for (std::size_t end; (end = part_.find('\n')) != std::string::npos; part_.erase(0, end + 1)) {
      lines.push_back(part_.substr(0, end));
    }
  }

 private:
  std::string part_;
  bool open_ = true;
};

class Server {
 public:
  Server(const mamba::LanguageModel& model, const mamba::Tokenizer& tokenizer,
         std::int64_t capacity, mamba::Stream& stream)
      : tokenizer_(tokenizer), pool_(model, capacity, stream) {}

  void run() {
    // No more is taken than there will soon be room for: a faster writer waits at its pipe.
    while (!interrupted()) {
      const bool idle = answers_.empty() && lines_.empty();
      const bool room = static_cast<std::int64_t>(lines_.size()) < pool_.capacity();
      if (idle && !input_.open()) return;
      if (input_.open() && room) input_.take(/*wait=*/idle, lines_);
      admit();
      read_prompts();
      write_tokens();
    }
    for (Answer& answer : answers_) finish(answer, "interrupted");
  }

 private:
  void admit() {
    while (!lines_.empty() && pool_.size() < pool_.capacity()) {
      const std::string line = std::move(lines_.front());
      lines_.pop_front();
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      Request request;
      try {
        parse(line, tokenizer_, request);
      } catch (const std::exception& error) {
        put({{"id", request.id}, {"error", error.what()}});
        continue;
      }
      mamba::Generator generator = pool_.make(request.sampling);
      answers_.push_back({std::move(request), std::move(generator)});
    }
  }

  // A piece of every prompt at a time, so that a long one does not stop those who write.
  void read_prompts() {
    constexpr std::size_t piece = 256;
    mamba::Generator::Group group;
    std::vector<Ids> pieces;
    for (Answer& answer : answers_) {
      const Ids& prompt = answer.request.prompt;
      if (answer.read == prompt.size()) continue;
      const std::size_t count = std::min(piece, prompt.size() - answer.read);
      const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(answer.read);
      pieces.emplace_back(first, first + static_cast<std::ptrdiff_t>(count));
      group.push_back(&answer.generator);
      answer.read += count;
    }
    mamba::Generator::read(group, pieces);
  }

  // One token more of every answer whose prompt is read.
  void write_tokens() {
    mamba::Generator::Group group;
    std::vector<std::list<Answer>::iterator> writing;
    for (auto answer = answers_.begin(); answer != answers_.end();) {
      const auto here = answer++;
      if (here->read < here->request.prompt.size()) continue;
      if (here->request.options.max_tokens == 0) {
        finish(*here, "max_tokens");
        answers_.erase(here);
        continue;
      }
      group.push_back(&here->generator);
      writing.push_back(here);
    }
    mamba::Generator::next(group);
    for (const auto& answer : writing) {
      if (hear(*answer)) answers_.erase(answer);
    }
  }

  // Sends the new token's text; whether that was the last.
  bool hear(Answer& answer) {
    const mamba::GenerateOptions& options = answer.request.options;
    const std::string text = answer.generator.text(options);
    if (!text.empty()) put({{"id", answer.request.id}, {"text", text}});
    ++answer.written;
    const auto reason = answer.generator.stopped(options);
    if (!reason && answer.written < options.max_tokens) return false;
    finish(answer, !reason ? "max_tokens" : *reason == mamba::StopReason::eos ? "eos" : "stop");
    return true;
  }

  static void finish(Answer& answer, const char* reason) {
    const std::string rest = answer.generator.finish_text();
    if (!rest.empty()) put({{"id", answer.request.id}, {"text", rest}});
    put({{"id", answer.request.id},
         {"done", reason},
         {"prompt_tokens", answer.read},
         {"tokens", answer.written}});
  }

  const mamba::Tokenizer& tokenizer_;
  mamba::GeneratorPool pool_;
  Input input_;
  std::deque<std::string> lines_;  // not yet looked at
  std::list<Answer> answers_;
};

int serve(int argc, char** argv) {
  CLI::App app("Answers prompts, lines of JSON in and out: see examples/serve.cpp.", "serve");
  ModelFlags flags;
  std::string tokenizer_path;
  std::int64_t capacity = 8;
  flags.add_folder(app);
  app.add_option("--tokenizer", tokenizer_path, "tokenizer.json (default: the one in MODEL)");
  app.add_option("--capacity", capacity, "Answers at a time")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str();
  flags.add_placement(app);
  CLI11_PARSE(app, argc, argv);

  catch_interrupts();
  const mamba::LanguageModel model = flags.load("serve");
  const mamba::Tokenizer tokenizer = flags.tokenizer("serve", "--tokenizer", tokenizer_path, model);
  mamba::Stream stream = flags.stream();
  Server(model, tokenizer, capacity, stream).run();
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return serve(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "serve: %s\n", error.what());
    return 1;
  }
}
