// SsdGrad as loops in double over the recurrence and its adjoint, and the loss whose gradient it
// is, for finite differences.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <mamba/grad_ops.hpp>

#include "ops/ssd_reference.hpp"

namespace mamba::testing {

// The weights of the loss sum(dy y) + sum(dfinal final_state).
struct SsdLoss {
  std::vector<double> dy, dfinal;  // dfinal may be empty: zeros

  double operator()(const SsdReference& ssd) const {
    double loss = 0;
    std::vector<Bounded> y(ssd.head_dim);
    for (std::size_t b = 0; b < ssd.batch; ++b) {
      for (std::size_t k = 0; k < ssd.heads; ++k) {
        std::vector<SsdElement> h = ssd.start(b, k);
        for (std::size_t t = 0; t < ssd.time; ++t) {
          ssd.step(b, t, k, h, y.data());
          const std::size_t first = ((b * ssd.time + t) * ssd.heads + k) * ssd.head_dim;
          for (std::size_t p = 0; p < ssd.head_dim; ++p) loss += dy[first + p] * y[p].value;
        }
        const std::size_t first = (b * ssd.heads + k) * h.size();
        for (std::size_t i = 0; i < h.size() && !dfinal.empty(); ++i) {
          loss += dfinal[first + i] * h[i].value;
        }
      }
    }
    return loss;
  }
};

// A sum in any order of terms that are sums themselves: every rounding is relative to what their
// absolute values sum to.
struct SsdTerms {
  double value = 0, bound = 0, magnitude = 0;

  void add(const Tracked& factor, const Bounded& element, double magnitude_of_element) {
    value += factor.value * element.value;
    bound += (std::abs(factor.value) + factor.bound) * element.bound +
             factor.bound * magnitude_of_element;
    magnitude += std::abs(factor.value) * magnitude_of_element;
  }
  // `unit`: what else its factors are rounded to, relative.
  Tracked total(std::size_t roundings, double unit) const {
    const double each = static_cast<double>(roundings) * f32_roundoff + unit;
    return {value, second_order * (bound + each * magnitude) + f32_smallest};
  }
};

struct SsdGradResult {
  std::vector<Bounded> dx;      // [batch, time, channels]
  std::vector<Bounded> ddt;     // [batch, time, heads]
  std::vector<Bounded> dB, dC;  // [batch, time, groups d_state]
  std::vector<Bounded> dA_log, dD, ddt_bias;
  std::vector<Bounded> dinitial;  // [batch, channels, d_state]
};

class SsdGradReference {
 public:
  SsdGradReference(const SsdReference& ssd, const SsdLoss& loss) : ssd_(ssd), loss_(loss) {
    const std::size_t tokens = ssd.batch * ssd.time;
    result_.dx.resize(ssd.x.size());
    result_.ddt.resize(tokens * ssd.heads);
    result_.dinitial.resize(ssd.batch * ssd.heads * ssd.head_dim * ssd.states);
    dB_.resize(tokens * ssd.groups * ssd.states);
    dC_.resize(dB_.size());
    for (auto* sums : {&dA_, &dD_, &ddt_bias_}) sums->resize(ssd.heads);
    for (std::size_t b = 0; b < ssd.batch; ++b) {
      for (std::size_t k = 0; k < ssd.heads; ++k) head(b, k);
    }
  }

  SsdGradResult result() const {
    SsdGradResult all = result_;
    const std::size_t rounds = ssd_.head_dim + ssd_.heads / ssd_.groups + chunk() + 8;
    for (const SsdTerms& sum : dB_) all.dB.push_back(sum.total(rounds, unit()));
    for (const SsdTerms& sum : dC_) all.dC.push_back(sum.total(rounds, unit()));
    for (std::size_t k = 0; k < ssd_.heads; ++k) {
      all.dA_log.push_back(static_cast<Tracked>(dA_[k]) * ssd_.A(k));
    }
    all.dD = bounded(dD_);
    all.ddt_bias = bounded(ddt_bias_);
    return all;
  }

 private:
  std::size_t chunk() const { return static_cast<std::size_t>(ssd_.rounding.chunk); }
  double unit() const { return ssd_.rounding.y_unit; }

  void head(std::size_t b, std::size_t k) {
    // h[t] is the state after t steps.
    std::vector<std::vector<SsdElement>> h{ssd_.start(b, k)};
    std::vector<Bounded> y(ssd_.head_dim);
    for (std::size_t t = 0; t < ssd_.time; ++t) {
      std::vector<SsdElement> next = h.back();
      ssd_.step(b, t, k, next, y.data());
      h.push_back(std::move(next));
    }
    const std::size_t first = (b * ssd_.heads + k) * h[0].size();
    std::vector<SsdElement> dh(h[0].size());
    for (std::size_t i = 0; i < dh.size() && !loss_.dfinal.empty(); ++i) {
      dh[i].value = loss_.dfinal[first + i];
      dh[i].magnitude = dh[i].reach = std::abs(dh[i].value);
    }
    for (std::size_t t = ssd_.time; t-- > 0;) {
      const bool reset = ssd_.is_reset(b * ssd_.time + t);
      const std::vector<SsdElement> before = reset ? std::vector<SsdElement>(dh.size()) : h[t];
      step(b * ssd_.time + t, k, before, h[t + 1], dh);
      if (reset) dh.assign(dh.size(), {});
    }
    for (std::size_t i = 0; i < dh.size(); ++i) result_.dinitial[first + i] = ssd_.element(dh[i]);
  }

  // dh: the gradient of the state after the step by what follows; then that before it.
  void step(std::size_t token, std::size_t k, const std::vector<SsdElement>& before,
            const std::vector<SsdElement>& after, std::vector<SsdElement>& dh) {
    const double u = f32_roundoff;
    const Tracked delta = ssd_.delta(token, k), a = ssd_.decay(token, k);
    const std::size_t first = (token * ssd_.heads + k) * ssd_.head_dim;
    const std::size_t group = (token * ssd_.groups + ssd_.group(k)) * ssd_.states;
    SsdTerms xv, dlog_a;
    for (std::size_t p = 0; p < ssd_.head_dim; ++p) {
      const double x = ssd_.x[first + p], dy = loss_.dy[first + p];
      SsdTerms v;
      for (std::size_t n = 0; n < ssd_.states; ++n) {
        SsdElement& e = dh[p * ssd_.states + n];
        const double term = dy * ssd_.C[group + n];
        e.value += term;
        e.magnitude += std::abs(term);
        e.reach += std::abs(term);
        e.bound += second_order * (std::abs(term) * (2 * u + ssd_.rounding.state_unit) +
                                   4 * e.magnitude * u + f32_smallest);
        const SsdElement& was = before[p * ssd_.states + n];
        const SsdElement& is = after[p * ssd_.states + n];
        const Bounded seen = ssd_.element(e), seen_before = ssd_.element(was);
        dC_[group + n].add(dy, ssd_.element(is), is.magnitude);
        dB_[group + n].add(delta * x, seen, e.magnitude);
        v.add(ssd_.B[group + n], seen, e.magnitude);
        // a h: what is off in a counts for the terms of h, and those of a h for the terms of dh.
        SsdTerms decayed;
        decayed.add(a, seen_before, was.magnitude);
        dlog_a.value += decayed.value * seen.value;
        dlog_a.bound += decayed.bound * (e.magnitude + seen.bound) + decayed.magnitude * seen.bound;
        dlog_a.magnitude += decayed.magnitude * e.magnitude;
      }
      const Tracked dhB = v.total(ssd_.states + chunk() + 8, unit());
      xv.add(x, dhB, v.magnitude);
      const Tracked direct = delta * dhB;
      result_.dx[first + p] = ssd_.D.empty() ? direct : Tracked(ssd_.D[k]) * dy + direct;
      dD_[k].add(Tracked(dy) * x);
    }
    const std::size_t rounds = ssd_.head_dim + ssd_.states + 2 * chunk() + 12;
    const Tracked dlog = dlog_a.total(rounds, unit());
    ddt(token, k, xv.total(ssd_.head_dim + 2, 0) + dlog * ssd_.A(k));
    dA_[k].add(delta * dlog);
    for (SsdElement& e : dh) {
      e.bound = (a.value + a.bound) * e.bound + a.bound * e.magnitude;
      e.value *= a.value;
      e.magnitude *= a.value;
    }
  }

  void ddt(std::size_t token, std::size_t k, const Tracked& ddelta) {
    const Tracked v = ssd_.raw(token, k), step = ssd_.softplus ? softplus(v) : v;
    Tracked slope = 1;
    if (ssd_.softplus && v.value <= 20) slope = sigmoid(v);
    Tracked result = ddelta * slope;
    if (!(step.value > ssd_.low && step.value < ssd_.high)) result.value = 0;
    const double nearest =
        std::min(std::abs(step.value - ssd_.low), std::abs(step.value - ssd_.high));
    if (nearest <= step.bound) {  // either side may be seen
      result.bound += std::abs((ddelta * slope).value);
    } else if (result.value == 0) {
      result = 0;
    }
    result_.ddt[token * ssd_.heads + k] = result;
    ddt_bias_[k].add(result);
  }

  const SsdReference& ssd_;
  const SsdLoss& loss_;
  SsdGradResult result_;
  std::vector<SsdTerms> dB_, dC_;
  std::vector<TrackedSum> dA_, dD_, ddt_bias_;
};

}  // namespace mamba::testing
