// Whose turn it is, and what a generator holds.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <stdexcept>
#include <utility>

#include "models.hpp"

namespace mamba::python {

// ---- the end of Python -------------------------------------------------------------------------

namespace {

// Once Python has ended, it ends threads that want the GIL where they stand, up to 3.13, and a
// destructor that wants it then ends the process. So calls that are under way in daemon threads end
// after a token, and are waited for, while Python is still there.
struct Ending {
  std::mutex mutex;
  std::condition_variable none_left;
  int under_way = 0;
  std::atomic<bool> begun{false};
  std::thread::id by;
};

Ending& ending() {
  static Ending* const one = new Ending;  // for threads that outlive everything
  return *one;
}

void wait_for_calls() {
  const nb::gil_scoped_release release;
  std::unique_lock<std::mutex> lock(ending().mutex);
  ending().by = std::this_thread::get_id();
  ending().begun = true;
  // A callback may wait for what will never come.
  constexpr std::chrono::seconds at_most(5);
  ending().none_left.wait_for(lock, at_most, [] { return ending().under_way == 0; });
}

void begin_call() {
  const std::lock_guard<std::mutex> lock(ending().mutex);
  ++ending().under_way;
}

void end_call() {
  const std::lock_guard<std::mutex> lock(ending().mutex);
  if (--ending().under_way == 0) ending().none_left.notify_all();
}

}  // namespace

bool is_ending() { return ending().begun && ending().by != std::this_thread::get_id(); }

void bind_ending() {
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&wait_for_calls));
}

// ---- turns -------------------------------------------------------------------------------------

Turn::Turn(const char* where, std::vector<Line*> lines) : lines_(std::move(lines)) {
  std::sort(lines_.begin(), lines_.end());  // one order for all, so that no two wait for each other
  lines_.erase(std::unique(lines_.begin(), lines_.end()), lines_.end());
  for (const Line* line : lines_) {
    if (!line->mine()) continue;
    throw std::runtime_error(std::string(where) +
                             ": generator: expected one that is at rest, got one that is in a call "
                             "which waits for this callback");
  }
  if (is_ending()) throw std::runtime_error(std::string(where) + ": Python ends");
  begin_call();
  released_.emplace();
  for (Line* line : lines_) {
    line->mutex_.lock();
    line->owner_ = std::this_thread::get_id();
  }
}

Turn::~Turn() {
  for (Line* line : lines_) {
    line->owner_ = std::thread::id();
    line->mutex_.unlock();
  }
  released_.reset();
  end_call();
}

HeldGenerator::~HeldGenerator() {
  if (!generator || line->mine() || is_ending()) return;
  const Turn turn("Generator", {line.get()});
  generator.reset();
}

Ids HeldGenerator::prompt(const char* where, nb::handle given,
                          std::optional<bool> special_tokens) const {
  if (!nb::isinstance<nb::str>(given) && !nb::isinstance<nb::bytes>(given)) {
    return ids_of(where, "prompt", given);
  }
  if (!tokenizer) {
    throw ArgumentError(where, "tokenizer", "one, since the prompt is text", "none");
  }
  const bool special = special_tokens.value_or(generator->tokens_seen() == 0);
  const std::string_view text = bytes_in(where, given);
  const nb::gil_scoped_release release;
  return tokenizer->encode(text, special);
}

}  // namespace mamba::python
