// Many texts through one model at once: requests come in, events go out, and nobody notices the
// others. No sockets, no JSON.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <mamba/generator.hpp>
#include <mamba/state_cache.hpp>

#include "prompt_scores.hpp"
#include "stop_trim.hpp"

namespace server {

using Ids = std::vector<std::int32_t>;
using Clock = std::chrono::steady_clock;

// What the model remembers after a text, and the text: constant, in host memory.
struct KeptText {
  Ids path;  // every token of it
  mamba::GeneratorSnapshot snapshot;

  std::int64_t bytes() const {
    return snapshot.bytes() + static_cast<std::int64_t>(path.size() * sizeof(std::int32_t));
  }
};

// Read `prompt` after `from`, then write.
struct Job {
  std::shared_ptr<const KeptText> from;  // none: a new text
  Ids prompt;                            // valid ids; may be empty only after `from`
  mamba::SamplingOptions sampling;       // checked
  std::int64_t max_tokens = 16;          // 0: reads only
  bool ignore_eos = false;
  std::vector<std::string> stop;          // checked as GenerateOptions::stop
  bool stop_in_text = false;              // whether a text has the stop string that ended it
  std::optional<std::int64_t> log_probs;  // as in GenerateOptions
  bool score_prompt = false;  // the log-probabilities of its tokens too; not with `from`
  // Texts that are written after the prompt, which is read once. The seed of choice i is that of
  // `sampling` plus i.
  int choices = 1;
  bool keep = false;      // what is remembered at the end comes with it
  bool look_for = false;  // `prompt` is all of a text, of which `from` may be a beginning: the
                          // longest that is known of it is not read again
};

// What a generator is asked for each token of it. Throws mamba::ArgumentError where that cannot be.
mamba::GenerateOptions options_of(const Job& job, const mamba::Tokenizer& tokenizer);

enum class Finish { max_tokens, eos, stop, cancelled };

struct PromptRead {
  std::int64_t known = 0;               // tokens that did not have to be read
  std::vector<mamba::LogProbs> scores;  // of each token of the prompt but the first, if asked for
};

struct Token {
  std::int32_t id = 0;
  std::int64_t position = 0;  // in the whole text, from 0
  // What is sure to be part of the text from now on: nothing while a character is not whole, or
  // where a stop string may have begun.
  std::string text;
  std::optional<mamba::LogProbs> log_probs;
};

struct Finished {
  Finish reason = Finish::max_tokens;
  std::string text;       // what had been held back and belongs to the text
  std::int64_t read = 0;  // tokens of the prompt, those included that were known
  std::int64_t known = 0;
  std::int64_t written = 0;
  std::shared_ptr<const KeptText> kept;  // if asked for
};

// Told in this order: read once; token any number of times and then finished, for each choice; or
// failed, after which nothing comes for that choice. On the engine's thread, which waits meanwhile.
class Listener {
 public:
  Listener() = default;
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  virtual ~Listener() = default;
  virtual void read(const PromptRead&) {}
  virtual void token(int choice, Token token) = 0;
  virtual void finished(int choice, Finished end) = 0;
  virtual void failed(int choice, const std::string& why) = 0;
};

// There is no place left in the queue.
class QueueFull : public std::runtime_error {
 public:
  explicit QueueFull(std::int64_t places)
      : std::runtime_error("expected room in the queue of " + std::to_string(places) +
                           " requests, got none") {}
};

struct EngineOptions {
  std::int64_t capacity = 8;     // texts that go through the model together
  std::int64_t queue = 1 << 20;  // that wait for a place, choices counted
  std::int64_t keep_every = 64;  // tokens of a text that is kept, between points to go back to
};

struct Counts {
  std::int64_t read = 0, known = 0, written = 0;  // tokens
  std::int64_t running = 0, waiting = 0;          // texts
  std::int64_t steps = 0;
};

// submit() and cancel() may be called from any thread; step() and interrupt() by one at a time.
class Engine {
 public:
  using Ticket = std::uint64_t;

  // All must outlive it; `cache` may be nullptr.
  Engine(const mamba::LanguageModel& model, const mamba::Tokenizer& tokenizer,
         mamba::StateCache* cache, mamba::Stream& stream, const EngineOptions& options);

  // All of them or, where the queue has no room for that, none: QueueFull. One listener for each.
  std::vector<Ticket> submit(std::vector<Job> jobs,
                             const std::vector<std::shared_ptr<Listener>>& listeners);
  Ticket submit(Job job, const std::shared_ptr<Listener>& listener);
  // Every choice that still runs or waits is finished as cancelled, with nothing kept.
  void cancel(Ticket ticket);

  // Reads a piece of prompts and writes a token of every text that is written; whether there was
  // anything to do.
  bool step();
  // Texts that can begin at once.
  std::int64_t room() const;
  // Everything ends now, as if cancelled.
  void interrupt();

  // Steps until stop(), and waits where there is nothing to do.
  void run();
  void stop();  // once all is done that was submitted

  Counts counts() const;
  const mamba::LanguageModel& model() const { return model_; }
  const mamba::Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  struct Order {  // what all choices of a job share
    Ticket ticket = 0;
    Job job;
    std::shared_ptr<Listener> listener;

    // The text up to the first `read` tokens of the prompt.
    Ids text(std::size_t read) const;
  };
  struct Waiting {
    std::shared_ptr<const Order> order;
    int choice = 0;
    std::shared_ptr<const KeptText> after_prompt;  // of choices but the first
    std::int64_t known = 0;
  };
  struct Answer {
    std::shared_ptr<const Order> order;
    int choice;
    mamba::Generator generator;
    mamba::GenerateOptions options;
    StopTrim trim;
    std::size_t known = 0;  // tokens of the prompt
    std::size_t read = 0;   // with those
    std::int64_t written = 0;
    Ids ids;  // that were written, where they will be kept
    std::optional<PromptScores> scores;
    bool announced = false;

    bool reads() const { return read < order->job.prompt.size() || (scores && !scores->done()); }
    std::int64_t position() const {  // of the next token that is read
      const std::int64_t before = order->job.look_for || !order->job.from
                                      ? 0
                                      : static_cast<std::int64_t>(order->job.from->path.size());
      return before + static_cast<std::int64_t>(read);
    }
  };
  using Answers = std::list<Answer>;

  void take_inbox();
  void admit();
  void begin(Waiting waiting);
  void go_on_from(mamba::Generator& generator, const Job& job, std::size_t& known);
  void read_prompts();
  void announce(Answers::iterator answer);
  void write_tokens();
  void write_token(Answers::iterator answer, Token token);
  void finish(Answers::iterator answer, Finish reason);
  void finish(const Waiting& waiting);
  void fail(Answers::iterator answer, const std::exception_ptr& error);
  void leave(Answers::iterator answer, int places);
  void release(int places);  // of the queue
  std::shared_ptr<const KeptText> kept(Answer& answer) const;
  void keep_point(Answer& answer);
  static Ids path_of(const Answer& answer);

  const mamba::LanguageModel& model_;
  const mamba::Tokenizer& tokenizer_;
  mamba::StateCache* cache_;
  mamba::Stream& stream_;
  EngineOptions options_;
  mamba::GeneratorPool pool_;
  std::deque<Waiting> waiting_;
  Answers answers_;

  mutable std::mutex mutex_;  // of what comes from other threads
  std::condition_variable wake_;
  std::vector<Waiting> inbox_;
  std::vector<Ticket> cancelled_;
  Ticket tickets_ = 0;
  bool stopping_ = false;
  std::int64_t places_taken_ = 0;  // of the queue

  std::atomic<std::int64_t> read_{0}, known_{0}, written_{0}, running_{0}, steps_{0};
};

}  // namespace server
