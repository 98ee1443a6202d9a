// Categorical and CategoricalGrad. Policies have few actions: plain loops, in double where they
// sum.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "detail/backend.hpp"

namespace mamba::host {

namespace {

void check_actions(const char* where, const ConstTensorView& actions, std::int64_t count) {
  const auto* action = actions.data<std::int32_t>();
  for (std::int64_t r = 0; r < actions.dim(0); ++r) {
    if (action[r] < 0 || action[r] >= count) {
      throw ArgumentError(where, "actions", fmt::format("0 to {}", count - 1),
                          fmt::format("{}", action[r]));
    }
  }
}

// log p of one row.
struct Distribution {
  const float* logits;
  std::int64_t count;
  double log_sum;
  double entropy = 0;

  Distribution(const float* from, std::int64_t n) : logits(from), count(n) {
    const double most = *std::max_element(logits, logits + n);
    double sum = 0;
    for (std::int64_t v = 0; v < n; ++v) sum += std::exp(logits[v] - most);
    log_sum = most + std::log(sum);
    for (std::int64_t v = 0; v < n; ++v) entropy -= p_log_p(v);
  }
  double log_p(std::int64_t v) const { return logits[v] - log_sum; }
  double p(std::int64_t v) const { return std::exp(log_p(v)); }
  // Zero for an impossible action, whose log is minus infinity.
  double p_log_p(std::int64_t v) const { return p(v) == 0 ? 0 : p(v) * log_p(v); }
};

}  // namespace

void run(const Categorical& op, Stream&) {
  const std::int64_t count = op.logits.dim(1);
  if (op.log_prob) check_actions("categorical", op.actions, count);
  for (std::int64_t r = 0; r < op.logits.dim(0); ++r) {
    const Distribution row(op.logits.data<float>() + r * op.logits.row_pitch(), count);
    if (op.log_prob) {
      const std::int64_t action = op.actions.data<std::int32_t>()[r];
      op.log_prob.data<float>()[r] = static_cast<float>(row.log_p(action));
    }
    if (op.entropy) op.entropy.data<float>()[r] = static_cast<float>(row.entropy);
    if (!op.log_probs) continue;
    float* to = op.log_probs.data<float>() + r * op.log_probs.row_pitch();
    for (std::int64_t v = 0; v < count; ++v) to[v] = static_cast<float>(row.log_p(v));
  }
}

void run(const CategoricalGrad& op, Stream&) {
  const std::int64_t count = op.logits.dim(1);
  if (op.dlog_prob) check_actions("categorical_grad", op.actions, count);
  for (std::int64_t r = 0; r < op.logits.dim(0); ++r) {
    const Distribution row(op.logits.data<float>() + r * op.logits.row_pitch(), count);
    const double dlog_prob = op.dlog_prob ? op.dlog_prob.data<float>()[r] : 0;
    const double dentropy = op.dentropy ? op.dentropy.data<float>()[r] : 0;
    const std::int64_t action = op.dlog_prob ? op.actions.data<std::int32_t>()[r] : -1;
    float* to = op.dlogits.data<float>() + r * op.dlogits.row_pitch();
    for (std::int64_t v = 0; v < count; ++v) {
      const double chosen = v == action ? 1 : 0;
      const double p = row.p(v);
      to[v] = static_cast<float>(dlog_prob * (chosen - p) -
                                 dentropy * (row.p_log_p(v) + p * row.entropy));
    }
  }
}

}  // namespace mamba::host
