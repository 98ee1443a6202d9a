// CausalConv and SelectiveScan as loops in double over the operands' exact values. Every value
// carries a bound on how far from it a correct f32 computation may be: the roundings of f32
// arithmetic, each at most 2^-24 relative, summed to first order. `second_order` covers the
// products of roundings. No bound depends on fused multiply-adds: a product and its sum count as
// two roundings.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <mamba/ops.hpp>

#include "testing.hpp"

namespace mamba::testing {

constexpr double f32_smallest = 0x1p-126;  // below it a result may be flushed to zero
constexpr double second_order = 1.001;

// What the functions inside the kernels may be off by, relative, in roundings. vector_math_test.cpp
// holds the CPU's to it.
constexpr double exp2_roundings = 4;
constexpr double exp_roundings = 4;
constexpr double softplus_roundings = 6;
constexpr double silu_roundings = 8;

inline double exact_softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }
inline double exact_silu(double z) { return z / (1 + std::exp(-z)); }

// The elements of an optional operand; empty when it is absent.
inline std::vector<double> optional_values(const ConstTensorView& view) {
  return view ? values(view) : std::vector<double>();
}

inline std::vector<std::int32_t> optional_integers(const ConstTensorView& view) {
  if (!view) return {};
  const std::vector<unsigned char> bytes = bits(view);
  std::vector<std::int32_t> list(static_cast<std::size_t>(view.count()));
  if (!list.empty()) std::memcpy(list.data(), bytes.data(), bytes.size());
  return list;
}

struct SequenceResult {
  std::vector<Bounded> y;            // [batch, time, channels]
  std::vector<Bounded> final_state;  // [batch, channels, ...], of each batch row
  std::vector<Bounded> step_states;  // [batch, time, channels, ...]
};

// The scan's operands in double, and one step of one channel; h has d_state elements.
struct ScanReference {
  explicit ScanReference(const SelectiveScan& op)
      : time(static_cast<std::size_t>(op.x.dim(1))),
        channels(static_cast<std::size_t>(op.x.dim(2))),
        states(static_cast<std::size_t>(op.B.dim(2))),
        softplus(op.softplus),
        x(values(op.x)),
        dt(values(op.dt)),
        A_log(optional_values(op.A_log)),
        given_A(optional_values(op.A)),
        B(values(op.B)),
        C(values(op.C)),
        D(optional_values(op.D)),
        z(optional_values(op.z)),
        dt_bias(optional_values(op.dt_bias)),
        initial(optional_values(op.initial_state)),
        reset(optional_integers(op.reset)),
        read(optional_integers(op.rows.read)) {}

  std::size_t time, channels, states;
  bool softplus;
  std::vector<double> x, dt, A_log, given_A, B, C, D, z, dt_bias, initial;
  std::vector<std::int32_t> reset, read;

  // A of channel and state i, and how often f32 arithmetic rounds it.
  double A(std::size_t i) const { return A_log.empty() ? given_A[i] : -std::exp(A_log[i]); }
  double A_roundings() const { return A_log.empty() ? 0 : exp_roundings; }

  std::vector<Bounded> start(std::size_t b, std::size_t c) const {
    std::vector<Bounded> h(states);
    const std::int64_t row = read.empty() ? static_cast<std::int64_t>(b) : read[b];
    if (initial.empty() || row < 0) return h;
    for (std::size_t n = 0; n < states; ++n) {
      h[n].value = initial[(static_cast<std::size_t>(row) * channels + c) * states + n];
    }
    return h;
  }

  Bounded step(std::size_t b, std::size_t t, std::size_t c, std::vector<Bounded>& h) const {
    const double u = f32_roundoff;
    const std::size_t token = b * time + t;
    const double input = x[token * channels + c];
    if (!reset.empty() && reset[token] != 0) h.assign(states, {});

    // dt + bias is one rounding; softplus passes it on by its slope, which is at most 1.
    const double v = dt[token * channels + c] + (dt_bias.empty() ? 0 : dt_bias[c]);
    const double delta = softplus ? exact_softplus(v) : v;
    const double slope = softplus ? 1 / (1 + std::exp(-v)) : 1;
    const double delta_relative = delta == 0
                                      ? 0
                                      : (dt_bias.empty() ? 0 : slope * u * std::abs(v / delta)) +
                                            (softplus ? softplus_roundings * u : 0);

    double sum = D.empty() ? 0 : D[c] * input;
    double magnitude = std::abs(sum), inherited = 0;
    for (std::size_t n = 0; n < states; ++n) {
      // The exponent: A, times log2(e) (itself rounded), times delta.
      const double exponent = A(c * states + n) * delta;
      const double decay = std::exp(exponent);
      const double decay_bound =
          decay * (std::abs(exponent) * (delta_relative + (A_roundings() + 3) * u) +
                   exp2_roundings * u) +
          f32_smallest;
      const double added = delta * input * B[token * states + n];
      const double before = h[n].value;
      h[n].value = decay * before + added;
      h[n].bound =
          second_order * (decay * h[n].bound + decay_bound * std::abs(before) +
                          std::abs(added) * (delta_relative + 2 * u) +
                          u * std::abs(decay * before) + u * std::abs(h[n].value) + f32_smallest);
      const double weight = C[token * states + n];
      sum += weight * h[n].value;
      magnitude += std::abs(weight * h[n].value);
      inherited += std::abs(weight) * h[n].bound;
    }
    // Any order of summing n products and D x rounds each at most n + 2 times.
    double bound = second_order * (inherited + magnitude * (static_cast<double>(states) + 2) * u);
    if (!z.empty()) {
      const double gate = exact_silu(z[token * channels + c]);
      bound = second_order *
              (std::abs(gate) * bound +
               std::abs(sum) * (std::abs(gate) * (silu_roundings + 1) * u + f32_smallest));
      sum *= gate;
    }
    return {sum, bound + f32_smallest};
  }
};

// `keep_state` is applied to every state after every step: rounding there is what a library that
// keeps its state in 16 bits would do.
template <class Keep>
SequenceResult scan_reference(const SelectiveScan& op, Keep keep_state) {
  const ScanReference scan(op);
  const auto batch = static_cast<std::size_t>(op.x.dim(0));
  SequenceResult result;
  result.y.resize(batch * scan.time * scan.channels);
  result.step_states.resize(result.y.size() * scan.states);
  for (std::size_t b = 0; b < batch; ++b) {
    for (std::size_t c = 0; c < scan.channels; ++c) {
      std::vector<Bounded> h = scan.start(b, c);
      for (std::size_t t = 0; t < scan.time; ++t) {
        const std::size_t i = (b * scan.time + t) * scan.channels + c;
        result.y[i] = scan.step(b, t, c, h);
        for (Bounded& state : h) state.value = keep_state(state.value);
        std::copy(h.begin(), h.end(),
                  result.step_states.begin() + static_cast<std::ptrdiff_t>(i * scan.states));
      }
      result.final_state.insert(result.final_state.end(), h.begin(), h.end());
    }
  }
  return result;
}

inline SequenceResult scan_reference(const SelectiveScan& op) {
  return scan_reference(op, [](double value) { return value; });
}

// The conv's state is exact: its bounds are zero.
inline SequenceResult conv_reference(const CausalConv& op) {
  const auto batch = static_cast<std::size_t>(op.x.dim(0));
  const auto time = static_cast<std::size_t>(op.x.dim(1));
  const auto channels = static_cast<std::size_t>(op.x.dim(2));
  const auto width = static_cast<std::size_t>(op.weight.dim(1));
  const std::vector<double> x = values(op.x), weight = values(op.weight);
  const std::vector<double> bias = optional_values(op.bias);
  const std::vector<double> initial = optional_values(op.initial_state);
  const std::vector<std::int32_t> reset = optional_integers(op.reset);
  const std::vector<std::int32_t> read = optional_integers(op.rows.read);
  SequenceResult result;
  result.y.resize(x.size());
  result.step_states.resize(x.size() * (width - 1));
  for (std::size_t b = 0; b < batch; ++b) {
    const std::int64_t row = read.empty() ? static_cast<std::int64_t>(b) : read[b];
    for (std::size_t c = 0; c < channels; ++c) {
      std::vector<double> taps(width);  // taps[k] is the input width - 1 - k steps ago
      for (std::size_t k = 1; k < width && !initial.empty() && row >= 0; ++k) {
        taps[k] = initial[(static_cast<std::size_t>(row) * channels + c) * (width - 1) + k - 1];
      }
      for (std::size_t t = 0; t < time; ++t) {
        if (!reset.empty() && reset[b * time + t] != 0) taps.assign(width, 0);
        const std::size_t i = (b * time + t) * channels + c;
        taps.erase(taps.begin());
        taps.push_back(x[i]);
        double sum = bias.empty() ? 0 : bias[c];
        double magnitude = std::abs(sum);
        for (std::size_t k = 0; k < width; ++k) {
          sum += weight[c * width + k] * taps[k];
          magnitude += std::abs(weight[c * width + k] * taps[k]);
        }
        double bound = magnitude * (static_cast<double>(width) + 1) * f32_roundoff;
        if (op.silu) {  // its slope is at most 1.1
          sum = exact_silu(sum);
          bound = 1.1 * bound + std::abs(sum) * silu_roundings * f32_roundoff;
        }
        result.y[i] = {sum, second_order * bound + f32_smallest};
        for (std::size_t k = 1; k < width; ++k) {
          result.step_states[i * (width - 1) + k - 1] = {taps[k], 0};
        }
      }
      for (std::size_t k = 1; k < width; ++k) result.final_state.push_back({taps[k], 0});
    }
  }
  return result;
}

}  // namespace mamba::testing
