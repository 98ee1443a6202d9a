// What a generator says of the tokens it chooses: text in whole characters, and when to end.
#include <mamba/generator.hpp>

#include <algorithm>
#include <utility>

#include <mamba/check.hpp>

#include "host/core/finished.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/generate/token_odds.hpp"

namespace mamba {

void GenerateOptions::check() const {
  constexpr const char* where = "Generator::generate";
  mamba::check::range(where, "max_tokens", max_tokens, 0, INT64_MAX);
  if (log_probs) mamba::check::range(where, "log_probs", *log_probs, 0, INT32_MAX);
  for (const std::string& text : stop) {
    mamba::check::range(where, "stop (bytes)", static_cast<std::int64_t>(text.size()), 1,
                        Generator::longest_stop);
  }
  if (tokenizer != nullptr) return;
  if (!stop.empty()) {
    throw ArgumentError(where, "tokenizer", "one, to find stop strings with", "none");
  }
  if (on_text) {
    throw ArgumentError(where, "tokenizer", "one, to make text with", "none");
  }
}

bool Generator::is_eos(std::int32_t token) const {
  const Ids& eos = model().config().eos_token_ids;
  return std::find(eos.begin(), eos.end(), token) != eos.end();
}

// Of the bytes of the last token, `last`, those up to the end of the first stop string that ends in
// them; absent if none does. A token may hold more than a stop string, or be a part of one: what
// counts is where the text is complete, not where the token ends.
std::optional<std::size_t> Generator::stop_end(const GenerateOptions& options,
                                               const std::string& last) const {
  std::size_t longest = 0;
  for (const std::string& stop : options.stop) longest = std::max(longest, stop.size());
  std::string text = last;
  for (std::size_t i = recent_.size() - 1; i-- > 0 && text.size() < last.size() + longest;) {
    text.insert(0, options.tokenizer->decode({recent_[i]}));
  }
  const std::size_t before = text.size() - last.size();
  std::optional<std::size_t> first;
  for (const std::string& stop : options.stop) {
    // An occurrence that ends before the last token was one of an earlier token.
    const std::size_t from = before >= stop.size() ? before - stop.size() + 1 : 0;
    const std::size_t at = text.find(stop, from);
    if (at == std::string::npos) continue;
    const std::size_t end = at + stop.size() - before;
    first = first ? std::min(*first, end) : end;
  }
  return first;
}

std::optional<StopReason> Generator::stopped(const GenerateOptions& options) const {
  if (recent_.empty()) return std::nullopt;
  if (!options.ignore_eos && is_eos(recent_.back())) return StopReason::eos;
  if (options.stop.empty()) return std::nullopt;
  options.check();
  const bool complete = stop_end(options, options.tokenizer->decode({recent_.back()})).has_value();
  return complete ? std::optional(StopReason::stop_string) : std::nullopt;
}

std::string Generator::text(const GenerateOptions& options) {
  if (options.tokenizer == nullptr) {
    throw ArgumentError("Generator::text", "tokenizer", "one, to make text with", "none");
  }
  if (recent_.empty()) return "";
  std::string last;
  if (options.ignore_eos || !is_eos(recent_.back())) {
    last = options.tokenizer->decode({recent_.back()});
  }
  const std::size_t end =
      options.stop.empty() ? last.size() : stop_end(options, last).value_or(last.size());
  const std::string given = after_stop_ + last.substr(0, end);
  after_stop_ = last.substr(end);
  return text_.push(given);
}

std::string Generator::finish_text() {
  after_stop_.clear();
  return text_.finish();
}

LogProbs Generator::log_probs(std::int64_t top) const {
  constexpr const char* where = "Generator::log_probs";
  const ConstTensorView logits = slot().logits();
  mamba::check::range(where, "top", top, 0, INT32_MAX);
  if (!pending_ || lent_) {
    throw ArgumentError(where, "token", "one that was chosen last, and not with a draft", "none");
  }
  return log_probs_of(on_host(logits, stream()), recent_.back(), top);
}

std::optional<LogProbs> Generator::odds(const GenerateOptions& options, std::int32_t token,
                                        ConstTensorView logits) const {
  if (!options.log_probs) return std::nullopt;
  return log_probs_of(on_host(logits, stream()), token, *options.log_probs);
}

// A token just chosen: kept, told, and the reason to end after it if there is one.
std::optional<StopReason> Generator::receive(const GenerateOptions& options, std::int32_t token,
                                             std::optional<LogProbs> odds, Generated& result) {
  result.tokens.push_back(token);
  if (odds) result.log_probs.push_back(std::move(*odds));
  // First, so that no character is lost where on_token throws.
  const std::string text = options.on_text ? this->text(options) : "";
  const bool more_tokens = !options.on_token || options.on_token(token);
  const bool more_text = text.empty() || options.on_text(text);
  return more_tokens && more_text ? stopped(options) : StopReason::callback;
}

// receive(), whatever happens in it; whether more is wanted.
bool Generator::goes_on(Generator& member, const GenerateOptions& options, std::int32_t token,
                        std::optional<LogProbs> odds, Generated& result) {
  try {
    const std::optional<StopReason> reason =
        member.receive(options, token, std::move(odds), result);
    if (reason) result.reason = *reason;
    return !reason && static_cast<std::int64_t>(result.tokens.size()) < options.max_tokens;
  } catch (...) {
    result.reason = StopReason::error;
    result.error = std::current_exception();
    return false;
  }
}

}  // namespace mamba
