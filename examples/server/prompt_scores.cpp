#include "prompt_scores.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace server {

namespace {

constexpr std::size_t piece = 64;  // tokens; of each there are logits of the whole vocabulary

mamba::LogProbs score(const float* logits, std::int64_t vocab, std::int32_t token,
                      std::int64_t top) {
  const float largest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (std::int64_t i = 0; i < vocab; ++i) sum += std::exp(double{logits[i]} - largest);
  const double log_sum = largest + std::log(sum);
  const auto log_prob = [&](std::int32_t id) {
    return static_cast<float>(double{logits[id]} - log_sum);
  };
  mamba::LogProbs result;
  result.chosen = log_prob(token);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(vocab));
  std::iota(ids.begin(), ids.end(), 0);
  const auto count = static_cast<std::ptrdiff_t>(std::min(top, vocab));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
                    });
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    result.top.push_back(
        {ids[static_cast<std::size_t>(i)], log_prob(ids[static_cast<std::size_t>(i)])});
  }
  return result;
}

}  // namespace

PromptScores::PromptScores(const mamba::LanguageModel& model,
                           const std::vector<std::int32_t>& prompt, std::int64_t top)
    : model_(&model), prompt_(&prompt), top_(top), state_(model.make_state(1)) {}

void PromptScores::read_piece(mamba::Stream& stream) {
  if (done()) return;
  const std::size_t count = std::min(piece, prompt_->size() - 1 - read_);
  const auto first = prompt_->begin() + static_cast<std::ptrdiff_t>(read_);
  const auto time = static_cast<std::int64_t>(count);
  const std::int64_t vocab = model_->config().vocab_size;
  const mamba::Tensor host_ids = mamba::Tensor::from(
      std::vector<std::int32_t>(first, first + static_cast<std::ptrdiff_t>(count)), {1, time});
  const mamba::Tensor ids = host_ids.to(model_->device(), mamba::DType::i32, stream);
  mamba::Tensor logits({1, time, vocab}, mamba::DType::f32, model_->device());
  model_->forward(ids, state_, mamba::Logits::all(logits), stream);
  stream.synchronize();
  const mamba::Tensor host = logits.to(mamba::Device::cpu());
  for (std::size_t i = 0; i < count; ++i) {
    scores_.push_back(score(host.data<float>() + static_cast<std::int64_t>(i) * vocab, vocab,
                            (*prompt_)[read_ + i + 1], top_));
  }
  read_ += count;
}

}  // namespace server
