// What is asked of a text that is being written, and what comes of it.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/tokenizer.hpp>

namespace MAMBA_EXPORT mamba {

// When generate() ends, and which callbacks run meanwhile. On CUDA a step needs no answer from the
// host: where there are no callbacks, or callbacks_apart, the next step is queued before the last
// token is known. If that token turns out to end the text, the superfluous step is undone.
struct GenerateOptions {
  std::int64_t max_tokens = 128;
  bool ignore_eos = false;  // false: after one of config().eos_token_ids
  // After the token that completes one of these in the decoded text of this and earlier calls; it
  // may lie inside of a token, or across several. on_text gets the text up to the end of the stop
  // string. What the token holds after that comes first in a later call's text, since the state has
  // seen it. Needs a tokenizer; each 1 to Generator::longest_stop bytes.
  std::vector<std::string> stop;
  const Tokenizer* tokenizer = nullptr;
  // Called with every token as soon as it is chosen; false ends after it.
  std::function<bool(std::int32_t token)> on_token;
  // Called with new text, in whole characters of UTF-8; false ends after it. Needs a tokenizer. A
  // character that is not complete at the end of a call comes out in a later one (see
  // finish_text). The text of an end-of-text token is left out.
  std::function<bool(std::string_view text)> on_text;
  // The callbacks use no generator and no state: these may be a step further than what they hear.
  bool callbacks_apart = false;

  // The log-probability of every token, and those of this many likeliest tokens in its place, come
  // with the result. They are natural logarithms of the softmax of the model's logits as they are:
  // before bias, penalty, temperature and the limits of sampling. Each token then takes its logits
  // to the host, and no step is queued before the last token is known. Absent: nothing is computed.
  std::optional<std::int64_t> log_probs;

  // A negative max_tokens or log_probs, a stop string of no length or too long, and text without a
  // tokenizer are ArgumentErrors; generate() asks.
  void check() const;
};

enum class StopReason { max_tokens, eos, stop_string, callback, error };

struct TokenLogProb {
  std::int32_t token = -1;
  float log_prob = 0;
};

struct LogProbs {
  float chosen = 0;               // of the token that was chosen
  std::vector<TokenLogProb> top;  // of the likeliest, in falling order; equals by id
};

struct Generated {
  std::vector<std::int32_t> tokens;
  std::vector<LogProbs> log_probs;  // one for each token where they were asked for, else none
  StopReason reason = StopReason::max_tokens;
  std::exception_ptr error;  // where that is the reason
};

// What a member of a group chose. With an error it has no new token.
struct Chosen {
  std::int32_t token = -1;
  std::exception_ptr error;
};

}  // namespace mamba
