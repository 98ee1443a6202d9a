#include "host/generate/token_odds.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include <mamba/error.hpp>

namespace mamba {
namespace {

constexpr double impossible = -std::numeric_limits<double>::infinity();

std::vector<double> adjusted(const float* logits, std::int64_t vocab, const std::int32_t* seen,
                             const SamplingOptions& options) {
  const std::vector<float> bias = bias_of(options, vocab);
  const float penalty = options.repetition_penalty;
  std::vector<double> result(static_cast<std::size_t>(vocab), impossible);
  for (std::size_t id = 0; id < result.size(); ++id) {
    float v = logits[id];
    if (!bias.empty()) v += bias[id];
    if (std::isnan(v)) continue;
    if (penalty != 1 && seen[id] != 0) v = v > 0 ? v / penalty : v * penalty;
    result[id] = static_cast<double>(v);
  }
  return result;
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// Ids by falling value, the lowest id first among equals.
std::vector<std::size_t> ranked(const std::vector<double>& values) {
  std::vector<std::size_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), std::size_t{0});
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  return ids;
}

}  // namespace

std::vector<float> bias_of(const SamplingOptions& options, std::int64_t vocab) {
  if (options.logit_bias.empty() && options.allowed.empty()) return {};
  constexpr float never = -std::numeric_limits<float>::infinity();
  std::vector<float> bias(static_cast<std::size_t>(vocab), options.allowed.empty() ? 0 : never);
  for (const std::int32_t id : options.allowed) bias[static_cast<std::size_t>(id)] = 0;
  for (const auto& [id, value] : options.logit_bias) bias[static_cast<std::size_t>(id)] += value;
  return bias;
}

std::vector<double> token_odds(const float* logits, std::int64_t vocab, const std::int32_t* seen,
                               const SamplingOptions& options, std::int64_t row) {
  const std::vector<double> values = adjusted(logits, vocab, seen, options);
  const auto best = std::max_element(values.begin(), values.end());
  if (!std::isfinite(*best)) {  // as Sample says it
    throw ArgumentError("sample", "logits", fmt::format("a finite largest value in row {}", row),
                        fmt::format("{}", *best));
  }
  std::vector<double> odds(values.size(), 0.0);
  if (options.temperature == 0) {
    odds[static_cast<std::size_t>(best - values.begin())] = 1;
    return odds;
  }
  for (std::size_t id = 0; id < odds.size(); ++id) {
    odds[id] = std::exp((values[id] - *best) / static_cast<double>(options.temperature));
  }
  if (options.top_k > 0 && options.top_k < vocab) {
    const std::vector<std::size_t> ids = ranked(values);
    for (auto i = static_cast<std::size_t>(options.top_k); i < ids.size(); ++i) odds[ids[i]] = 0;
  }
  if (options.top_p < 1) {
    const double target = static_cast<double>(options.top_p) * sum(odds);
    double kept = 0;
    bool any = false;
    for (const std::size_t id : ranked(odds)) {
      if (any && kept >= target) odds[id] = 0;
      kept += odds[id];
      any = true;
    }
  }
  for (double& value : odds) {  // the largest is 1
    if (value < static_cast<double>(options.min_p)) value = 0;
  }
  const double total = sum(odds);
  for (double& value : odds) value /= total;
  return odds;
}

LogProbs log_probs_of(const Tensor& logits, std::int32_t token, std::int64_t top) {
  const std::vector<double> values = adjusted(logits.data<float>(), logits.count(), nullptr, {});
  const double best = *std::max_element(values.begin(), values.end());
  double total = 0;
  for (const double value : values) total += std::exp(value - best);
  const double scale = best + std::log(total);
  const auto log_prob = [&](std::size_t id) { return static_cast<float>(values[id] - scale); };
  LogProbs result;
  result.chosen = log_prob(static_cast<std::size_t>(token));
  if (top == 0) return result;
  std::vector<std::size_t> ids = ranked(values);
  ids.resize(std::min(ids.size(), static_cast<std::size_t>(top)));
  for (const std::size_t id : ids) {
    result.top.push_back({static_cast<std::int32_t>(id), log_prob(id)});
  }
  return result;
}

std::int32_t draw(const std::vector<double>& odds, double uniform) {
  const double target = uniform * sum(odds);
  double passed = 0;
  std::size_t chosen = 0;
  for (std::size_t id = 0; id < odds.size(); ++id) {
    if (odds[id] <= 0) continue;  // rounding must not end on an impossible token
    chosen = id;
    passed += odds[id];
    if (passed > target) break;
  }
  return static_cast<std::int32_t>(chosen);
}

}  // namespace mamba
