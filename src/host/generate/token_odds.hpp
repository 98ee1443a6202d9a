// The distribution that the operation Sample draws a token from, and that of the model, as numbers
// on the host.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/generate_options.hpp>
#include <mamba/sampling.hpp>
#include <mamba/tensor.hpp>

namespace mamba {

// What `options` add to each logit, minus infinity for what is not allowed; empty where they leave
// all logits as they are.
std::vector<float> bias_of(const SamplingOptions& options, std::int64_t vocab);

// Probabilities of all ids that sum to 1; greedy: 1 for one of them. `seen` may be nullptr where
// there is no repetition penalty. No finite largest logit: ArgumentError, naming `row`.
std::vector<double> token_odds(const float* logits, std::int64_t vocab, const std::int32_t* seen,
                               const SamplingOptions& options, std::int64_t row = 0);

// The id that `uniform`, in [0, 1), falls on when the odds, which need not sum to 1, are laid end
// to end. Never one without odds.
std::int32_t draw(const std::vector<double>& odds, double uniform);

// What GenerateOptions::log_probs says of `token` and of the `top` likeliest. `logits` [1, vocab]
// f32 on the host, with a finite largest value.
LogProbs log_probs_of(const Tensor& logits, std::int32_t token, std::int64_t top);

}  // namespace mamba
