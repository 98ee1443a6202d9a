// Answers prompts that come as lines of JSON on standard input, many at once, with lines of JSON on
// standard output: continuous batching without a server around it.
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
//   serve [MODEL] [--capacity N] [--cache FOLDER] < prompts.jsonl
//
// With a cache, beginnings of prompts that were read before are not read again, and "done" lines
// say how many tokens were known: "known_tokens".
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <exception>
#include <list>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/generator.hpp>
#include <mamba/state_cache.hpp>

#include "programs/interrupt.hpp"
#include "programs/memory.hpp"
#include "programs/model_flags.hpp"
#include "programs/output.hpp"
#include "programs/program.hpp"
#include "serve_request.hpp"

namespace {

using Json = nlohmann::ordered_json;  // keys stay as they are written here
using Ids = std::vector<std::int32_t>;

// The longest line that is looked at, so that one without an end takes no more memory than this.
constexpr std::size_t most_line_bytes = std::size_t{64} << 20;

struct Answer {
  Request request;
  mamba::Generator generator;
  std::size_t known = 0;  // prompt tokens that the cache knew
  std::size_t read = 0;   // with those
  std::int64_t written = 0;
};

// An object with the id of a request before its other keys. Whole lines only, each in one piece:
// whatever ends this program, no reader sees half of one.
void send_line(const Request& request, const Json& rest) {
  const std::string others = rest.dump(-1, ' ', false, Json::error_handler_t::replace);
  write_output("serve", "{\"id\":" + request.id + "," + others.substr(1) + "\n");
}

// Standard input in lines, of which it takes what is there and waits only if told to.
class Input {
 public:
  bool open() const { return open_; }

  void read_lines(bool wait, std::deque<std::string>& lines) {
    pollfd either[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_descriptor(), POLLIN, 0}};
    if (poll(either, 2, wait ? -1 : 0) <= 0 || either[0].revents == 0) return;
    char buffer[65536];
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
    std::string_view left(buffer, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    for (std::size_t end; (end = left.find('\n')) != std::string_view::npos;) {
      add(left.substr(0, end));
      lines.push_back(std::move(part_));
      part_.clear();
      left.remove_prefix(end + 1);
    }
    add(left);
    if (count > 0) return;
    open_ = false;
    if (!part_.empty()) lines.push_back(std::move(part_));  // the last line may have no end
  }

 private:
  // What a line has beyond its most is passed over: it is refused as a whole when it is parsed.
  void add(std::string_view bytes) { part_ += bytes.substr(0, most_line_bytes + 1 - part_.size()); }

  std::string part_;
  bool open_ = true;
};

class Server {
 public:
  // `cache` may be nullptr.
  Server(const mamba::LanguageModel& model, const mamba::Tokenizer& tokenizer,
         std::int64_t capacity, mamba::StateCache* cache, mamba::Stream& stream)
      : tokenizer_(tokenizer), cache_(cache), pool_(model, capacity, stream) {}

  void run() {
    // No more is taken than there will soon be room for: a faster writer waits at its pipe.
    while (!interrupted()) {
      const bool idle = answers_.empty() && lines_.empty();
      const bool room = static_cast<std::int64_t>(lines_.size()) < pool_.capacity();
      if (idle && !input_.open()) return;
      if (input_.open() && room) input_.read_lines(/*wait=*/idle, lines_);
      admit();
      read_prompts();
      write_tokens();
    }
    for (Answer& answer : answers_) finish(answer, "interrupted");
    input_.read_lines(/*wait=*/false, lines_);  // what lies in the pipe was asked too
    while (const std::optional<Request> request = next_request()) finish(*request, "interrupted");
  }

 private:
  // The next line that asks for something; the others on the way are answered here.
  std::optional<Request> next_request() {
    while (!lines_.empty()) {
      const std::string line = std::move(lines_.front());
      lines_.pop_front();
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      Request request;
      try {
        if (line.size() > most_line_bytes) {
          throw std::invalid_argument("expected a line of at most 64 MiB, got more");
        }
        parse(line, tokenizer_, request);
        return request;
      } catch (const std::exception& error) {
        send_line(request, {{"error", error.what()}});
      }
    }
    return std::nullopt;
  }

  void admit() {
    while (pool_.size() < pool_.capacity()) {
      std::optional<Request> request = next_request();
      if (!request) return;
      mamba::Generator generator = pool_.make(request->sampling);
      std::size_t known = 0;
      if (cache_ != nullptr) {
        known = static_cast<std::size_t>(cache_->find(generator, request->prompt));
      }
      answers_.push_back({std::move(*request), std::move(generator), known, known});
    }
  }

  // A piece of every prompt at a time, so that a long one does not stop those who write. Pieces end
  // at multiples of their length: what prompts share is then known in the same pieces.
  void read_prompts() {
    constexpr std::size_t piece = 256;
    mamba::Generator::Group group;
    std::vector<Ids> pieces;
    std::vector<const Answer*> readers;
    for (Answer& answer : answers_) {
      const Ids& prompt = answer.request.prompt;
      if (answer.read == prompt.size()) continue;
      const std::size_t count = std::min(piece - answer.read % piece, prompt.size() - answer.read);
      const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(answer.read);
      pieces.emplace_back(first, first + static_cast<std::ptrdiff_t>(count));
      group.push_back(&answer.generator);
      answer.read += count;
      readers.push_back(&answer);
    }
    mamba::Generator::read(group, pieces);
    if (cache_ == nullptr) return;
    for (std::size_t i = 0; i < group.size(); ++i) {
      const auto first = readers[i]->request.prompt.begin();
      cache_->keep(*group[i], Ids(first, first + static_cast<std::ptrdiff_t>(readers[i]->read)));
    }
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
    const std::vector<mamba::Chosen> chosen = mamba::Generator::next(group);
    for (std::size_t i = 0; i < writing.size(); ++i) {
      const auto answer = writing[i];
      if (chosen[i].error) fail(*answer, chosen[i].error);
      if (chosen[i].error || send_token(*answer)) answers_.erase(answer);
    }
  }

  // One answer ends with an error; the others know nothing of it.
  static void fail(const Answer& answer, const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& what) {
      send_line(answer.request, {{"error", what.what()}});
    }
  }

  // Sends the new token's text; whether that was the last.
  bool send_token(Answer& answer) {
    const mamba::GenerateOptions& options = answer.request.options;
    const std::string text = answer.generator.text(options);
    if (!text.empty()) send_line(answer.request, {{"text", text}});
    ++answer.written;
    const auto reason = answer.generator.stopped(options);
    if (!reason && answer.written < options.max_tokens) return false;
    finish(answer, !reason ? "max_tokens" : *reason == mamba::StopReason::eos ? "eos" : "stop");
    return true;
  }

  void finish(Answer& answer, const char* reason) const {
    const std::string rest = answer.generator.finish_text();
    if (!rest.empty()) send_line(answer.request, {{"text", rest}});
    done(answer.request, reason, answer.read, answer.known, answer.written);
  }

  void finish(const Request& request, const char* reason) const { done(request, reason, 0, 0, 0); }

  void done(const Request& request, const char* reason, std::size_t read, std::size_t known,
            std::int64_t written) const {
    Json line{{"done", reason}, {"prompt_tokens", read}};
    if (cache_ != nullptr) line["known_tokens"] = known;
    line["tokens"] = written;
    send_line(request, line);
  }

  const mamba::Tokenizer& tokenizer_;
  mamba::StateCache* cache_;
  mamba::GeneratorPool pool_;
  Input input_;
  std::deque<std::string> lines_;  // not yet looked at
  std::list<Answer> answers_;
};

int serve(const ModelFlags& flags, std::int64_t capacity, const std::string& folder) {
  catch_interrupts();
  const mamba::LanguageModel model = flags.load("serve");
  const mamba::Tokenizer tokenizer = flags.load_tokenizer("serve", "tokenizer", model);
  check_memory("serve", "--capacity", "as many answers at a time",
               static_cast<double>(capacity) * bytes_of_generator(model.config(), model.dtype()),
               model.device());
  std::optional<mamba::StateCache> cache;
  if (!folder.empty()) cache.emplace(model, file_cache("serve", folder));
  mamba::Stream stream = flags.stream();
  Server(model, tokenizer, capacity, cache ? &*cache : nullptr, stream).run();
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers prompts, lines of JSON in and out: see examples/serve.cpp.", "serve");
  ModelFlags flags;
  std::int64_t capacity = 8;
  std::string cache;
  flags.add_folder(app);
  flags.add_tokenizer(app);
  app.add_option("--capacity", capacity, "Answers at a time")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str();
  add_cache(app, cache);
  flags.add_placement(app);
  return run_program(app, argc, argv, [&] { return serve(flags, capacity, cache); });
}
