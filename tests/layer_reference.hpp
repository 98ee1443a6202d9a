// A Mamba layer in double precision, one plain loop per stage, sharing nothing with the library but
// the weights. With `round_to` every stage's output is rounded to that storage type, as the library
// must: the distance between the two runs is what storage alone costs, and the yardstick for the
// library's error.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include <mamba/layer.hpp>

#include "testing.hpp"

namespace mamba::testing {

struct LayerResult {
  std::vector<double> y;     // [batch, time, d_model]
  std::vector<double> conv;  // [batch, d_inner, d_conv - 1]
  std::vector<double> ssm;   // [batch, d_inner, d_state]
};

class LayerReference {
 public:
  explicit LayerReference(const Layer& layer, std::optional<DType> round_to = std::nullopt)
      : c_(layer.config()), round_to_(round_to) {
    const LayerWeights& w = layer.weights();
    const auto load = [](const Tensor& tensor) {
      return tensor ? values(tensor) : std::vector<double>{};
    };
    in_proj_ = load(w.in_proj);
    in_bias_ = load(w.in_proj_bias);
    conv_weight_ = load(w.conv_weight);
    conv_bias_ = load(w.conv_bias);
    x_proj_ = load(w.x_proj);
    dt_proj_ = load(w.dt_proj);
    dt_bias_ = load(w.dt_bias);
    A_log_ = load(w.A_log);
    D_ = load(w.D);
    out_proj_ = load(w.out_proj);
    out_bias_ = load(w.out_proj_bias);
  }

  LayerResult forward(const Tensor& x, const MambaState& state) const {
    LayerResult result{{}, values(state.conv), values(state.ssm)};
    const std::vector<double> input = values(x);
    const auto width = static_cast<std::size_t>(c_.d_model);
    for (std::int64_t b = 0; b < x.dim(0); ++b) {
      for (std::int64_t t = 0; t < x.dim(1); ++t) {
        const auto at = static_cast<std::size_t>(b * x.dim(1) + t) * width;
        const std::vector<double> one(input.begin() + static_cast<std::ptrdiff_t>(at),
                                      input.begin() + static_cast<std::ptrdiff_t>(at + width));
        const std::vector<double> out = step(one, b, result);
        result.y.insert(result.y.end(), out.begin(), out.end());
      }
    }
    return result;
  }

 private:
  std::vector<double> linear(const std::vector<double>& x, const std::vector<double>& weight,
                             const std::vector<double>& bias, std::int64_t out) const {
    std::vector<double> y(static_cast<std::size_t>(out));
    for (std::size_t o = 0; o < y.size(); ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (std::size_t i = 0; i < x.size(); ++i) sum += weight[o * x.size() + i] * x[i];
      y[o] = rounded(sum);
    }
    return y;
  }

  void normalise(std::vector<double>& v, std::int64_t first, std::int64_t count) const {
    double squares = 0;
    for (std::int64_t i = first; i < first + count; ++i) {
      squares += v[static_cast<std::size_t>(i)] * v[static_cast<std::size_t>(i)];
    }
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(count) + c_.norm_dt_b_c_epsilon);
    for (std::int64_t i = first; i < first + count; ++i) {
      v[static_cast<std::size_t>(i)] = rounded(v[static_cast<std::size_t>(i)] * scale);
    }
  }

  static double silu(double v) { return v / (1 + std::exp(-v)); }
  static double softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }

  double rounded(double v) const {
    if (!round_to_) return v;
    const auto f = static_cast<float>(v);
    switch (*round_to_) {
      case DType::bf16:
        return static_cast<float>(bf16(f));
      case DType::f16:
        return static_cast<float>(f16(f));
      default:
        return f;
    }
  }

  // One step of batch row b; its rows of result.conv and result.ssm move on.
  std::vector<double> step(const std::vector<double>& x, std::int64_t b,
                           LayerResult& result) const {
    const std::int64_t inner = c_.d_inner;
    const std::int64_t memory = c_.d_conv - 1;
    const std::vector<double> xz = linear(x, in_proj_, in_bias_, 2 * inner);
    std::vector<double> u(static_cast<std::size_t>(inner));
    for (std::int64_t c = 0; c < inner; ++c) {
      double* past = result.conv.data() + (b * inner + c) * memory;
      const double* w = conv_weight_.data() + c * c_.d_conv;
      const double now = xz[static_cast<std::size_t>(c)];
      double sum = conv_bias_.empty() ? 0 : conv_bias_[static_cast<std::size_t>(c)];
      for (std::int64_t k = 0; k < memory; ++k) sum += w[k] * past[k];
      sum += w[memory] * now;
      for (std::int64_t k = 0; k + 1 < memory; ++k) past[k] = past[k + 1];
      if (memory > 0) past[memory - 1] = now;
      u[static_cast<std::size_t>(c)] = rounded(silu(sum));
    }
    std::vector<double> low = linear(u, x_proj_, {}, c_.dt_rank + 2 * c_.d_state);
    if (c_.norm_dt_b_c) {
      normalise(low, 0, c_.dt_rank);
      normalise(low, c_.dt_rank, c_.d_state);
      normalise(low, c_.dt_rank + c_.d_state, c_.d_state);
    }
    const double* B = low.data() + c_.dt_rank;
    const double* C = B + c_.d_state;
    const std::vector<double> dt =
        linear({low.begin(), low.begin() + c_.dt_rank}, dt_proj_, {}, inner);
    std::vector<double> gated(static_cast<std::size_t>(inner));
    for (std::int64_t c = 0; c < inner; ++c) {
      const auto i = static_cast<std::size_t>(c);
      const double delta = softplus(dt[i] + dt_bias_[i]);
      double* h = result.ssm.data() + (b * inner + c) * c_.d_state;
      double y = D_[i] * u[i];
      for (std::int64_t n = 0; n < c_.d_state; ++n) {
        const double A = -std::exp(A_log_[static_cast<std::size_t>(c * c_.d_state + n)]);
        h[n] = std::exp(delta * A) * h[n] + delta * B[n] * u[i];
        y += C[n] * h[n];
      }
      gated[i] = rounded(y * silu(xz[static_cast<std::size_t>(inner + c)]));
    }
    return linear(gated, out_proj_, out_bias_, c_.d_model);
  }

  LayerConfig c_;
  std::optional<DType> round_to_;
  std::vector<double> in_proj_, in_bias_, conv_weight_, conv_bias_, x_proj_, dt_proj_, dt_bias_,
      A_log_, D_, out_proj_, out_bias_;
};

}  // namespace mamba::testing
