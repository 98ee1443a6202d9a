// A Mamba layer in double precision, one plain loop per stage, sharing nothing with the library but
// the weights. With `round_to` every stage's output is rounded to that storage type, as the library
// must: the distance between the two runs is what storage alone costs, and the yardstick for the
// library's error.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mamba/layer.hpp>

#include "testing.hpp"

namespace mamba::testing {

struct LayerResult {
  std::vector<double> y;     // [batch, time, d_model]
  std::vector<double> conv;  // [batch, conv channels, d_conv - 1]
  std::vector<double> ssm;   // [batch, d_inner, d_state]
};

class LayerReference {
 public:
  explicit LayerReference(const Layer& layer, std::optional<DType> round_to = std::nullopt)
      : c_(layer.config()), round_to_(round_to) {
    LayerWeights::each(layer.weights(), c_, layer.dtype(),
                       [&](const char* name, const Tensor& tensor, const Shape&, DType) {
                         weights[name] = values(tensor);
                       });
  }

  // By published name, as in LayerWeights; for tests that move them.
  std::map<std::string, std::vector<double>> weights;

  LayerResult forward(const Tensor& x, const MambaState& state) const {
    LayerResult result{{}, values(state.conv), values(state.ssm)};
    result.y = forward(values(x), x.dim(0), {}, result.conv, result.ssm);
    return result;
  }

  // The states move on. `reset` [batch, time] may be empty.
  std::vector<double> forward(const std::vector<double>& x, std::int64_t batch,
                              const std::vector<std::int32_t>& reset, std::vector<double>& conv,
                              std::vector<double>& ssm) const {
    std::vector<double> y;
    const auto width = static_cast<std::size_t>(c_.d_model);
    const std::size_t rows = x.size() / width;
    const std::size_t time = batch > 0 ? rows / static_cast<std::size_t>(batch) : 0;
    for (std::size_t row = 0; row < rows; ++row) {
      const auto b = static_cast<std::int64_t>(row / time);
      if (!reset.empty() && reset[row] != 0) forget(b, conv, ssm);
      const auto at = x.begin() + static_cast<std::ptrdiff_t>(row * width);
      const std::vector<double> one(at, at + static_cast<std::ptrdiff_t>(width));
      const std::vector<double> out = step(one, b, conv, ssm);
      y.insert(y.end(), out.begin(), out.end());
    }
    return y;
  }

 private:
  bool mamba2() const { return c_.mixer == MixerKind::mamba2; }
  // That are convolved.
  std::int64_t channels() const {
    return mamba2() ? c_.d_inner + 2 * c_.groups * c_.d_state : c_.d_inner;
  }

  const std::vector<double>& weight(const char* name) const {
    static const std::vector<double> none;
    const auto found = weights.find(name);
    return found == weights.end() ? none : found->second;
  }

  void forget(std::int64_t b, std::vector<double>& conv, std::vector<double>& ssm) const {
    const std::int64_t memory = channels() * (c_.d_conv - 1);
    for (std::int64_t i = 0; i < memory; ++i) conv[static_cast<std::size_t>(b * memory + i)] = 0;
    for (std::int64_t i = 0; i < c_.d_inner * c_.d_state; ++i) {
      ssm[static_cast<std::size_t>(b * c_.d_inner * c_.d_state + i)] = 0;
    }
  }

  std::vector<double> linear(const std::vector<double>& x, const std::vector<double>& matrix,
                             const std::vector<double>& bias, std::int64_t out) const {
    std::vector<double> y(static_cast<std::size_t>(out));
    for (std::size_t o = 0; o < y.size(); ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (std::size_t i = 0; i < x.size(); ++i) sum += matrix[o * x.size() + i] * x[i];
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

  // One step of batch row b; its rows of the states move on.
  std::vector<double> step(const std::vector<double>& x, std::int64_t b,
                           std::vector<double>& conv_state, std::vector<double>& ssm) const {
    if (mamba2()) return mamba2_step(x, b, conv_state, ssm);
    const std::int64_t inner = c_.d_inner;
    const std::vector<double> xz =
        linear(x, weight("in_proj.weight"), weight("in_proj.bias"), 2 * inner);
    const std::vector<double> u = convolve(xz, b, conv_state);
    std::vector<double> low = linear(u, weight("x_proj.weight"), {}, c_.dt_rank + 2 * c_.d_state);
    if (c_.norm_dt_b_c) {
      normalise(low, 0, c_.dt_rank);
      normalise(low, c_.dt_rank, c_.d_state);
      normalise(low, c_.dt_rank + c_.d_state, c_.d_state);
    }
    std::vector<double> y = scan(u, low, b, ssm);
    if (c_.gated_norm) layer_norm(y);
    for (std::int64_t c = 0; c < inner; ++c) {
      double& gated = y[static_cast<std::size_t>(c)];
      gated = rounded(gated * silu(xz[static_cast<std::size_t>(inner + c)]));
    }
    return linear(y, weight("out_proj.weight"), weight("out_proj.bias"), c_.d_model);
  }

  std::vector<double> convolve(const std::vector<double>& xz, std::int64_t b,
                               std::vector<double>& state) const {
    const std::int64_t memory = c_.d_conv - 1;
    const std::vector<double>& bias = weight("conv1d.bias");
    std::vector<double> u(static_cast<std::size_t>(channels()));
    for (std::int64_t c = 0; c < channels(); ++c) {
      double* past = state.data() + (b * channels() + c) * memory;
      const double* w = weight("conv1d.weight").data() + c * c_.d_conv;
      const double now = xz[static_cast<std::size_t>(c)];
      double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(c)];
      for (std::int64_t k = 0; k < memory; ++k) sum += w[k] * past[k];
      sum += w[memory] * now;
      for (std::int64_t k = 0; k + 1 < memory; ++k) past[k] = past[k + 1];
      if (memory > 0) past[memory - 1] = now;
      u[static_cast<std::size_t>(c)] = rounded(silu(sum));
    }
    return u;
  }

  // Before the gate.
  std::vector<double> scan(const std::vector<double>& u, const std::vector<double>& low,
                           std::int64_t b, std::vector<double>& ssm) const {
    const double* B = low.data() + c_.dt_rank;
    const double* C = B + c_.d_state;
    const std::vector<double> dt =
        linear({low.begin(), low.begin() + c_.dt_rank}, weight("dt_proj.weight"), {}, c_.d_inner);
    const std::vector<double>&A_log = weight("A_log"), &D = weight("D"),
          &dt_bias = weight("dt_proj.bias");
    std::vector<double> result(u.size());
    for (std::size_t i = 0; i < u.size(); ++i) {
      const double delta = softplus(dt[i] + dt_bias[i]);
      const auto states = static_cast<std::size_t>(c_.d_state);
      double* h = ssm.data() + (static_cast<std::size_t>(b) * u.size() + i) * states;
      double y = D[i] * u[i];
      for (std::size_t n = 0; n < states; ++n) {
        const double A = -std::exp(A_log[i * states + n]);
        h[n] = std::exp(delta * A) * h[n] + delta * B[n] * u[i];
        y += C[n] * h[n];
      }
      result[i] = c_.gated_norm ? rounded(y) : y;
    }
    return result;
  }

  void layer_norm(std::vector<double>& y) const {
    const auto n = static_cast<double>(y.size());
    double mean = 0, squares = 0;
    for (const double v : y) mean += v / n;
    for (const double v : y) squares += (v - mean) * (v - mean);
    const double scale = 1 / std::sqrt(squares / n + c_.gated_norm_epsilon);
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] = (y[i] - mean) * scale * weight("norm.weight")[i] + weight("norm.bias")[i];
    }
  }

  std::vector<double> mamba2_step(const std::vector<double>& x, std::int64_t b,
                                  std::vector<double>& conv_state, std::vector<double>& ssm) const {
    const std::int64_t heads = c_.d_inner / c_.head_dim, inner = c_.d_inner;
    const std::vector<double> projected =
        linear(x, weight("in_proj.weight"), weight("in_proj.bias"), inner + channels() + heads);
    const std::vector<double> xBC = convolve(
        {projected.begin() + inner, projected.begin() + inner + channels()}, b, conv_state);
    std::vector<double> y(static_cast<std::size_t>(inner));
    for (std::int64_t p = 0; p < inner; ++p) {
      const std::int64_t head = p / c_.head_dim, group = head / (heads / c_.groups);
      const auto k = static_cast<std::size_t>(head), i = static_cast<std::size_t>(p);
      const double delta = std::min<double>(
          std::max<double>(softplus(projected[static_cast<std::size_t>(inner + channels()) + k] +
                                    weight("dt_bias")[k]),
                           c_.dt_low),
          c_.dt_high);
      const double decay = std::exp(-delta * std::exp(weight("A_log")[k]));
      double* h = ssm.data() + (b * inner + p) * c_.d_state;
      const double* B = xBC.data() + inner + group * c_.d_state;
      const double* C = B + c_.groups * c_.d_state;
      double sum = weight("D")[k] * xBC[i];
      for (std::int64_t n = 0; n < c_.d_state; ++n) {
        h[n] = decay * h[n] + delta * B[n] * xBC[i];
        sum += C[n] * h[n];
      }
      y[i] = rounded(sum);
    }
    gated_rms_norm(y, projected);
    return linear(y, weight("out_proj.weight"), weight("out_proj.bias"), c_.d_model);
  }

  // z is what `projected` begins with.
  void gated_rms_norm(std::vector<double>& y, const std::vector<double>& projected) const {
    const std::size_t width = y.size() / static_cast<std::size_t>(c_.groups);
    for (std::size_t first = 0; first < y.size(); first += width) {
      if (!c_.rmsnorm) {
        for (std::size_t i = first; i < first + width; ++i) {
          y[i] = rounded(y[i] * silu(projected[i]));
        }
        continue;
      }
      double squares = 0;
      for (std::size_t i = first; i < first + width; ++i) {
        const double v = c_.norm_before_gate ? y[i] : y[i] * silu(projected[i]);
        squares += v * v;
      }
      const double scale =
          1 / std::sqrt(squares / static_cast<double>(width) + c_.gated_norm_epsilon);
      for (std::size_t i = first; i < first + width; ++i) {
        y[i] = rounded(y[i] * silu(projected[i]) * scale * weight("norm.weight")[i]);
      }
    }
  }

  LayerConfig c_;
  std::optional<DType> round_to_;
};

}  // namespace mamba::testing
