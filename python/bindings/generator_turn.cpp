// Whose turn it is, and what a generator holds.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "models.hpp"

namespace mamba::python {

Turn::Turn(const char* where, std::vector<Line*> lines) : lines_(std::move(lines)) {
  std::sort(lines_.begin(), lines_.end());  // one order for all, so that no two wait for each other
  lines_.erase(std::unique(lines_.begin(), lines_.end()), lines_.end());
  for (const Line* line : lines_) {
    if (!line->mine()) continue;
    throw std::runtime_error(std::string(where) +
                             ": generator: expected one that is at rest, got one that is in a call "
                             "which waits for this callback");
  }
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
}

HeldGenerator::~HeldGenerator() {
  if (!generator || line->mine()) return;
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
