// The sums of SelectiveScanGrad that go over more than an item (sequence.hpp): each item has a
// place of its own, and the places are added in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>

#include <mamba/grad_ops.hpp>

#include "detail/scan_decays.hpp"
#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

namespace mamba::host {

class ScanGradSums {
 public:
  ScanGradSums(const SelectiveScanGrad& op, const Items& items, Scratch& scratch)
      : op_(op),
        batch_(op.x.dim(0)),
        time_(op.x.dim(1)),
        channels_(op.x.dim(2)),
        d_state_(detail::d_state_of(op)),
        panels_(batch_ > 0 ? items.count() / batch_ : 0) {
    const auto zeros = [&](std::int64_t rows, std::int64_t width) {
      float* memory = scratch.take({rows, width}, DType::f32).template data<float>();
      std::fill_n(memory, rows * width, 0.0f);
      return memory;
    };
    dBC_ = zeros(panels_ * batch_ * time_, 2 * d_state_);
    dA_ = zeros(batch_, channels_ * d_state_);
    dD_ = zeros(batch_, channels_);
    ddt_bias_ = zeros(batch_, channels_);
  }

  // [time][dB, dC] of an item, from step t on. Items are ordered by panel, then batch row.
  float* dB(std::int64_t item, std::int64_t t) const {
    return dBC_ + (item * time_ + t) * 2 * d_state_;
  }
  float* dA(std::int64_t b) const {  // or dA_log; [channels, d_state]
    return dA_ + b * channels_ * d_state_;
  }
  float* dD(std::int64_t b) const { return dD_ + b * channels_; }
  float* ddt_bias(std::int64_t b) const { return ddt_bias_ + b * channels_; }

  void finish(Stream& stream, int threads) const {
    add_batch_rows(dA_, batch_, op_.A ? op_.dA : op_.dA_log, op_.accumulate);
    add_batch_rows(dD_, batch_, op_.dD, op_.accumulate);
    add_batch_rows(ddt_bias_, batch_, op_.ddt_bias, op_.accumulate);
    const std::int64_t rows = batch_ * time_;
    StreamAccess::team(stream).run(threads, [&](int i) {
      detail::visit(op_.x.dtype(), [&](auto type) {
        using T = typename decltype(type)::type;
        for (std::int64_t r = rows * i / threads; r < rows * (i + 1) / threads; ++r) {
          add_panels<T>(op_.dB, r, 0);
          add_panels<T>(op_.dC, r, d_state_);
        }
      });
    });
  }

 private:
  // One step of one batch row, row r of [batch, time].
  template <class T>
  void add_panels(const TensorView& to, std::int64_t r, std::int64_t offset) const {
    T* y = to.data<T>() + r / time_ * to.row_pitch() + r % time_ * to.step_pitch();
    for (std::int64_t n = 0; n < d_state_; ++n) {
      float sum = 0;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        sum += dBC_[(panel * batch_ * time_ + r) * 2 * d_state_ + offset + n];
      }
      y[n] = static_cast<T>(sum);
    }
  }

  const SelectiveScanGrad& op_;
  const std::int64_t batch_, time_, channels_, d_state_, panels_;
  float *dBC_, *dA_, *dD_, *ddt_bias_;
};

}  // namespace mamba::host
