// Ssd as loops in double over the operands' exact values: the recurrence, whatever plan is tested.
// Every value carries a bound on how far from it a correct computation may be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <mamba/ops.hpp>

#include "ops/sequence_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {

// Where a plan rounds other than f32 arithmetic of the recurrence does.
struct SsdRounding {
  // Steps whose terms are summed in any order by products of matrices; 0: the recurrence. Sums then
  // round relative to the magnitude of their terms, and an exponent between two steps is a sum too.
  std::int64_t chunk = 0;
  // What the factors of y's products are rounded to, relative: the decayed scores, and the states
  // that C reads.
  double y_unit = 0;
  // The same of what is summed into a state: decayed delta x (or B).
  double state_unit = 0;
};

// An element of a state. `magnitude` is the sum of its terms' absolute values, as decayed as they
// are, and `reach` that of the terms as they came: an exponent may be flushed to zero at once.
struct SsdElement {
  double value = 0, bound = 0, magnitude = 0, reach = 0;
};

struct SsdReference {
  explicit SsdReference(const Ssd& op, SsdRounding rounds = {})
      : rounding(rounds),
        batch(static_cast<std::size_t>(op.x.dim(0))),
        time(static_cast<std::size_t>(op.x.dim(1))),
        heads(static_cast<std::size_t>(op.A_log.dim(0))),
        head_dim(static_cast<std::size_t>(op.x.dim(2)) / heads),
        groups(static_cast<std::size_t>(op.groups)),
        states(static_cast<std::size_t>(op.B.dim(2)) / groups),
        softplus(op.softplus),
        low(op.dt_low),
        high(op.dt_high),
        x(values(op.x)),
        dt(values(op.dt)),
        A_log(values(op.A_log)),
        B(values(op.B)),
        C(values(op.C)),
        D(optional_values(op.D)),
        dt_bias(optional_values(op.dt_bias)),
        initial(optional_values(op.initial_state)),
        reset(optional_integers(op.reset)),
        read(optional_integers(op.rows.read)) {}

  SsdRounding rounding;
  std::size_t batch, time, heads, head_dim, groups, states;
  bool softplus;
  double low, high;
  std::vector<double> x, dt, A_log, B, C, D, dt_bias, initial;
  std::vector<std::int32_t> reset, read;

  bool is_reset(std::size_t token) const { return !reset.empty() && reset[token] != 0; }
  std::size_t group(std::size_t k) const { return k / (heads / groups); }
  const double* B_of(std::size_t token, std::size_t k) const {
    return B.data() + (token * groups + group(k)) * states;
  }
  const double* C_of(std::size_t token, std::size_t k) const {
    return C.data() + (token * groups + group(k)) * states;
  }

  // [head_dim][states] of one head.
  std::vector<SsdElement> start(std::size_t b, std::size_t k) const {
    std::vector<SsdElement> h(head_dim * states);
    const std::int64_t row = read.empty() ? static_cast<std::int64_t>(b) : read[b];
    if (initial.empty() || row < 0) return h;
    const std::size_t first = (static_cast<std::size_t>(row) * heads + k) * h.size();
    for (std::size_t i = 0; i < h.size(); ++i) {
      h[i].value = initial[first + i];
      h[i].magnitude = h[i].reach = std::abs(h[i].value);
    }
    return h;
  }

  Tracked raw(std::size_t token, std::size_t k) const {
    const Tracked v = dt[token * heads + k];
    return dt_bias.empty() ? v : v + dt_bias[k];
  }
  Tracked delta(std::size_t token, std::size_t k) const {
    const Tracked v = raw(token, k), step = softplus ? testing::softplus(v) : v;
    if (step.value + step.bound < low) return low;
    if (step.value - step.bound > high) return high;
    return {std::clamp(step.value, low, high), step.bound};
  }
  // -exp(A_log), times log2(e), which is itself rounded.
  Tracked A(std::size_t k) const { return Tracked(-std::exp(A_log[k])).rounded(exp_roundings + 2); }
  Tracked decay(std::size_t token, std::size_t k) const {
    const Tracked exponent = delta(token, k) * A(k);
    return testing::decay(exponent.rounded(static_cast<double>(rounding.chunk)));
  }

  // One step of one head, whose y goes to y[0 .. head_dim).
  void step(std::size_t b, std::size_t t, std::size_t k, std::vector<SsdElement>& h,
            Bounded* y) const {
    const double u = f32_roundoff;
    const std::size_t token = b * time + t;
    if (is_reset(token)) h.assign(h.size(), {});
    const Tracked d = delta(token, k), a = decay(token, k);
    const double *B_t = B_of(token, k), *C_t = C_of(token, k);
    const auto sums = static_cast<double>(rounding.chunk > 0 ? rounding.chunk + 8 : 0);
    for (std::size_t p = 0; p < head_dim; ++p) {
      const double input = x[(token * heads + k) * head_dim + p];
      double sum = D.empty() ? 0 : D[k] * input;
      double magnitude = std::abs(sum), inherited = 0, rounded = 0;
      for (std::size_t n = 0; n < states; ++n) {
        SsdElement& e = h[p * states + n];
        advance(e, a, d, input * B_t[n]);
        const double weight = std::abs(C_t[n]);
        sum += C_t[n] * e.value;
        magnitude += weight * e.magnitude;
        rounded += weight * e.magnitude * rounding.y_unit;
        inherited += weight * element(e).bound;
      }
      // Any order of summing the products and D x.
      const double rounds = magnitude * (static_cast<double>(states) + 2 + sums) * u;
      y[p] = {sum, second_order * (inherited + rounded + rounds) + f32_smallest};
    }
  }

  // What a plan shows of an element: sums in any order over the terms of a chunk.
  Bounded element(const SsdElement& e) const {
    const auto sums = static_cast<double>(rounding.chunk > 0 ? rounding.chunk + 8 : 0);
    return {e.value, e.bound + sums * f32_roundoff * e.magnitude + f32_smallest * (1 + e.reach)};
  }

 private:
  void advance(SsdElement& e, const Tracked& a, const Tracked& d, double xB) const {
    const double u = f32_roundoff, added = std::abs(d.value * xB), before = e.magnitude;
    e.value = a.value * e.value + d.value * xB;
    e.magnitude = rounding.chunk > 0 ? a.value * before + added : std::abs(e.value);
    e.reach += added;
    // In chunks a term takes part in as many roundings as the chunk has steps, and a few more;
    // where its chunk has ended that is less than four in each step, and `element` adds those of
    // the last.
    const double sums = rounding.chunk > 0 ? 4 * e.magnitude : a.value * before + e.magnitude;
    e.bound = (a.value + a.bound) * e.bound +
              second_order * (a.bound * before + std::abs(xB) * d.bound +
                              added * (2 * u + rounding.state_unit) + sums * u + f32_smallest);
  }
};

struct SsdResult {
  std::vector<Bounded> y;             // [batch, time, channels]
  std::vector<Bounded> final_state;   // [batch, channels, d_state], of each batch row
  std::vector<Bounded> step_states;   // [batch, time, channels, d_state]; where asked for
  std::vector<Bounded> chunk_states;  // [batch, chunks, channels, d_state]; with op.chunk_steps
};

// `keep_state` is applied to every state after every step.
template <class Keep>
SsdResult ssd_reference(const Ssd& op, SsdRounding rounding, bool with_steps, Keep keep_state) {
  const SsdReference ssd(op, rounding);
  const std::size_t state = ssd.head_dim * ssd.states, row = ssd.heads * state;
  const auto kept = static_cast<std::size_t>(op.chunk_steps);
  const std::size_t chunks = kept > 0 ? (ssd.time + kept - 1) / kept : 0;
  SsdResult result;
  result.y.resize(ssd.x.size());
  result.final_state.resize(ssd.batch * row);
  result.step_states.resize(with_steps ? ssd.batch * ssd.time * row : 0);
  result.chunk_states.resize(ssd.batch * chunks * row);
  for (std::size_t b = 0; b < ssd.batch; ++b) {
    for (std::size_t k = 0; k < ssd.heads; ++k) {
      std::vector<SsdElement> h = ssd.start(b, k);
      const auto put = [&](std::vector<Bounded>& to, std::size_t which) {
        for (std::size_t i = 0; i < state; ++i) to[which * row + k * state + i] = ssd.element(h[i]);
      };
      for (std::size_t t = 0; t < ssd.time; ++t) {
        if (kept > 0 && t % kept == 0) put(result.chunk_states, b * chunks + t / kept);
        ssd.step(b, t, k, h, &result.y[((b * ssd.time + t) * ssd.heads + k) * ssd.head_dim]);
        for (SsdElement& e : h) e.value = keep_state(e.value);
        if (with_steps) put(result.step_states, b * ssd.time + t);
      }
      put(result.final_state, b);
    }
  }
  return result;
}

inline SsdResult ssd_reference(const Ssd& op, SsdRounding rounding, bool with_steps = false) {
  return ssd_reference(op, rounding, with_steps, [](double value) { return value; });
}

}  // namespace mamba::testing
