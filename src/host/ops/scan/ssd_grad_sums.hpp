// The sums of SsdGrad that go over more than an item (ssd_items.hpp): each item has a place of its
// own, and the places are added in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>

#include <mamba/grad_ops.hpp>

#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "host/ops/scan/ssd_items.hpp"

namespace mamba::host {

class SsdGradSums {
 public:
  SsdGradSums(const SsdGrad& op, const SsdItems& items, Scratch& scratch)
      : op_(op), sizes_(op), blocks_(items.blocks()) {
    const auto take = [&](std::int64_t rows, std::int64_t width) {
      return scratch.take({rows, width}, DType::f32).template data<float>();
    };
    dBC_ = take(items.count() * sizes_.time, 2 * sizes_.d_state);
    for (float** sums : {&dA_log_, &dD_, &ddt_bias_}) *sums = take(sizes_.batch, sizes_.heads);
  }

  // [dB, dC] of a step of an item. Every place here is written once, by the item that it is of.
  float* dBC(std::int64_t item, std::int64_t t) const {
    return dBC_ + (item * sizes_.time + t) * 2 * sizes_.d_state;
  }
  float& dA_log(std::int64_t b, std::int64_t head) const {
    return dA_log_[b * sizes_.heads + head];
  }
  float& dD(std::int64_t b, std::int64_t head) const { return dD_[b * sizes_.heads + head]; }
  float& ddt_bias(std::int64_t b, std::int64_t head) const {
    return ddt_bias_[b * sizes_.heads + head];
  }

  void finish(Stream& stream, int threads) const {
    add_batch_rows(dA_log_, sizes_.batch, op_.dA_log, op_.accumulate);
    add_batch_rows(dD_, sizes_.batch, op_.dD, op_.accumulate);
    add_batch_rows(ddt_bias_, sizes_.batch, op_.ddt_bias, op_.accumulate);
    const std::int64_t rows = sizes_.batch * sizes_.time;
    StreamAccess::team(stream).run(threads, [&](int i) {
      detail::visit(op_.x.dtype(), [&](auto type) {
        using T = typename decltype(type)::type;
        for (std::int64_t r = rows * i / threads; r < rows * (i + 1) / threads; ++r) {
          for (std::int64_t group = 0; group < sizes_.groups; ++group) {
            add_blocks<T>(op_.dB, r, group, 0);
            add_blocks<T>(op_.dC, r, group, sizes_.d_state);
          }
        }
      });
    });
  }

 private:
  // One step of one batch row, row r of [batch, time].
  template <class T>
  void add_blocks(const TensorView& to, std::int64_t r, std::int64_t group,
                  std::int64_t offset) const {
    const std::int64_t b = r / sizes_.time, t = r % sizes_.time, count = sizes_.d_state;
    const std::int64_t first = (b * sizes_.groups + group) * blocks_;
    float sum[256];
    std::copy_n(dBC(first, t) + offset, count, sum);
    for (std::int64_t block = 1; block < blocks_; ++block) {
      const float* more = dBC(first + block, t) + offset;
      for (std::int64_t n = 0; n < count; ++n) sum[n] += more[n];
    }
    T* y = to.data<T>() + b * to.row_pitch() + t * to.step_pitch() + group * count;
    for (std::int64_t n = 0; n < count; ++n) y[n] = static_cast<T>(sum[n]);
  }

  const SsdGrad& op_;
  const SsdSizes sizes_;
  const std::int64_t blocks_;
  float *dBC_, *dA_log_, *dD_, *ddt_bias_;
};

}  // namespace mamba::host
