// What the recipes share: reading a text, and the check of what each claims.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <mamba/mamba.hpp>

// [begin reading]
// The ids of texts of one length, [batch, time]: a token of the shipped model is a byte.
inline mamba::Tensor ids_of(const std::vector<std::string>& texts) {
  std::vector<std::int32_t> ids;
  for (const std::string& text : texts) {
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  }
  const auto batch = static_cast<std::int64_t>(texts.size());
  return mamba::Tensor::from(ids, {batch, static_cast<std::int64_t>(ids.size()) / batch});
}

// Goes on from `state` with a text for each of its rows. Returns the logits that follow, [batch,
// vocab_size].
inline std::vector<float> read(const mamba::LanguageModel& model,
                               const std::vector<std::string>& texts, mamba::StackState& state) {
  const mamba::Tensor ids = ids_of(texts).to(model.device());
  mamba::Tensor logits({ids.dim(0), model.config().vocab_size}, mamba::DType::f32, model.device());
  mamba::Stream& stream = mamba::default_stream(model.device());
  model.forward(ids, state, mamba::Logits::last(logits), stream);
  return logits.to_vector<float>();
}
// [end reading]

// Row `row` of logits [batch, vocab_size].
inline std::vector<float> row_of(const std::vector<float>& logits, std::size_t row) {
  const std::size_t vocab = 256;
  const auto first = logits.begin() + static_cast<std::ptrdiff_t>(row * vocab);
  return {first, first + static_cast<std::ptrdiff_t>(vocab)};
}

// What a recipe claims. A claim that does not hold is printed, and is the exit code.
class Claims {
 public:
  // The same bits.
  void equal(const char* claim, const std::vector<float>& expected, const std::vector<float>& got) {
    report(claim, difference(expected, got), 0);
  }
  // The same up to rounding, relative to the largest value: products of another number of rows may
  // add in another order.
  void close(const char* claim, const std::vector<float>& expected, const std::vector<float>& got) {
    report(claim, difference(expected, got), 1e-5);
  }
  void that(const char* claim, bool holds) { report(claim, holds ? 0 : 1, 0); }
  int exit_code() const { return failed_ ? 1 : 0; }

 private:
  static double difference(const std::vector<float>& expected, const std::vector<float>& got) {
    double apart = expected.size() == got.size() && !got.empty() ? 0 : INFINITY;
    double largest = 0;
    for (std::size_t i = 0; apart < INFINITY && i < expected.size(); ++i) {
      const double d = std::abs(static_cast<double>(expected[i]) - static_cast<double>(got[i]));
      apart = std::isnan(d) ? INFINITY : std::max(apart, d);
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    return largest == 0 ? INFINITY : apart / largest;  // all zeros would agree with anything
  }
  void report(const char* claim, double apart, double bound) {
    const bool holds = apart <= bound;
    std::printf("%-60s %.1e %s\n", claim, apart, holds ? "holds" : "DOES NOT HOLD");
    failed_ = failed_ || !holds;
  }

  bool failed_ = false;
};
