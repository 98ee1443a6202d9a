// SelectiveScanGrad as loops in double, and the loss whose gradient it is, for finite differences.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/grad_ops.hpp>

#include "ops/sequence_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {

// The weights of the loss sum(dy y) + sum(dfinal final_state).
struct ScanLoss {
  std::vector<double> dy, dfinal;  // dfinal may be empty: zeros

  double operator()(const ScanReference& scan) const {
    double loss = 0;
    const std::size_t batch = dy.size() / (scan.time * scan.channels);
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::size_t c = 0; c < scan.channels; ++c) {
        std::vector<Bounded> h = scan.start(b, c);
        for (std::size_t t = 0; t < scan.time; ++t) {
          loss += dy[(b * scan.time + t) * scan.channels + c] * scan.step(b, t, c, h).value;
        }
        for (std::size_t n = 0; n < scan.states && !dfinal.empty(); ++n) {
          loss += dfinal[(b * scan.channels + c) * scan.states + n] * h[n].value;
        }
      }
    }
    return loss;
  }
};

struct ScanGradResult {
  std::vector<Bounded> dx, ddt, dz, y;  // [batch, time, channels]
  std::vector<Bounded> dB, dC;          // [batch, time, d_state]
  std::vector<Bounded> dA_log, dA;      // the one whose operand is there
  std::vector<Bounded> dD, ddt_bias;
  std::vector<Bounded> dinitial;  // [batch, channels, d_state]
};

class ScanGradReference {
 public:
  ScanGradReference(const ScanReference& scan, const ScanLoss& loss, std::size_t batch)
      : scan_(scan), loss_(loss) {
    const std::size_t steps = batch * scan.time * scan.channels;
    result_.dx.resize(steps);
    result_.ddt.resize(steps);
    result_.dz.resize(steps);
    result_.y.resize(steps);
    result_.dinitial.resize(batch * scan.channels * scan.states);
    dB_.resize(batch * scan.time * scan.states);
    dC_.resize(dB_.size());
    dA_.resize(scan.channels * scan.states);
    dD_.resize(scan.channels);
    ddt_bias_.resize(scan.channels);
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::size_t c = 0; c < scan.channels; ++c) channel(b, c);
    }
  }

  ScanGradResult result() const {
    ScanGradResult all = result_;
    all.dB = bounded(dB_);
    all.dC = bounded(dC_);
    all.dD = bounded(dD_);
    all.ddt_bias = bounded(ddt_bias_);
    if (scan_.A_log.empty()) {
      all.dA = bounded(dA_);
    } else {
      for (std::size_t i = 0; i < dA_.size(); ++i) {
        all.dA_log.push_back(static_cast<Tracked>(dA_[i]) * A(i));
      }
    }
    return all;
  }

 private:
  Tracked A(std::size_t i) const { return Tracked(scan_.A(i)).rounded(scan_.A_roundings() + 2); }
  bool is_reset(std::size_t token) const { return !scan_.reset.empty() && scan_.reset[token] != 0; }

  void channel(std::size_t b, std::size_t c) {
    // h[t] is the state after t steps.
    std::vector<std::vector<Bounded>> h{scan_.start(b, c)};
    for (std::size_t t = 0; t < scan_.time; ++t) {
      std::vector<Bounded> next = h.back();
      result_.y[(b * scan_.time + t) * scan_.channels + c] = scan_.step(b, t, c, next);
      h.push_back(next);
    }
    std::vector<Tracked> carry(scan_.states);
    for (std::size_t n = 0; n < scan_.states && !loss_.dfinal.empty(); ++n) {
      carry[n] = loss_.dfinal[(b * scan_.channels + c) * scan_.states + n];
    }
    for (std::size_t t = scan_.time; t-- > 0;) {
      const bool reset = is_reset(b * scan_.time + t);
      step(b, t, c, reset ? std::vector<Bounded>(scan_.states) : h[t], h[t + 1], carry);
      if (reset) carry.assign(scan_.states, {});
    }
    for (std::size_t n = 0; n < scan_.states; ++n) {
      result_.dinitial[(b * scan_.channels + c) * scan_.states + n] = carry[n];
    }
  }

  void step(std::size_t b, std::size_t t, std::size_t c, const std::vector<Bounded>& before,
            const std::vector<Bounded>& after, std::vector<Tracked>& carry) {
    const std::size_t token = b * scan_.time + t;
    const std::size_t i = token * scan_.channels + c;
    const Tracked x = scan_.x[i], dy = loss_.dy[i];
    const Tracked v =
        scan_.dt_bias.empty() ? Tracked(scan_.dt[i]) : Tracked(scan_.dt[i]) + scan_.dt_bias[c];
    const Tracked delta = scan_.softplus ? softplus(v) : v;
    const Tracked g = scan_.z.empty() ? dy : dy * silu(scan_.z[i]);
    const Tracked D = scan_.D.empty() ? 0 : scan_.D[c];
    TrackedSum B_dh, A_dh, y;
    if (!scan_.D.empty()) y.add(D * x);
    for (std::size_t n = 0; n < scan_.states; ++n) {
      const Tracked B = scan_.B[token * scan_.states + n], C = scan_.C[token * scan_.states + n];
      const Tracked a = A(c * scan_.states + n);
      const Tracked dh = C * g + carry[n];
      dC_[token * scan_.states + n].add(Tracked(after[n]) * g);
      dB_[token * scan_.states + n].add(delta * x * dh);
      y.add(C * Tracked(after[n]));
      B_dh.add(B * dh);
      carry[n] = decay((delta * a).rounded(1)) * dh;
      const Tracked dexponent = carry[n] * Tracked(before[n]);
      A_dh.add((a * dexponent).rounded(2));  // log2(e) in, ln(2) out
      dA_[c * scan_.states + n].add((delta * dexponent).rounded(2));
    }
    const Tracked ddt = (x * static_cast<Tracked>(B_dh) + static_cast<Tracked>(A_dh)) *
                        (!scan_.softplus || v.value > 20 ? Tracked(1) : sigmoid(v));
    const Tracked direct = delta * static_cast<Tracked>(B_dh);
    result_.ddt[i] = ddt;
    result_.dx[i] = scan_.D.empty() ? direct : D * g + direct;
    if (!scan_.z.empty()) result_.dz[i] = dy * static_cast<Tracked>(y) * silu_slope(scan_.z[i]);
    dD_[c].add(g * x);
    ddt_bias_[c].add(ddt);
  }

  const ScanReference& scan_;
  const ScanLoss& loss_;
  ScanGradResult result_;
  std::vector<TrackedSum> dB_, dC_, dA_, dD_, ddt_bias_;
};

}  // namespace mamba::testing
