// References for the operations on whole rows: plain loops in double, each with the bound that
// follows from rounding every step to f32; the rounding of the result's storage is not
// in the bound, expect_within adds it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/targets.hpp"
#include "testing.hpp"

namespace mamba::testing {

// f(); on the CPU once with every vector instruction set that it has.
template <class F>
void each_backend(Device device, F f) {
  if (device.is_cuda()) return f();
  for_each_target([&](const char*) { f(); });
}

// A view of the same values inside a larger tensor whose other elements are NaN, so that a read
// outside shows. `pad` columns lie between rows.
class Padded {
 public:
  Padded(ConstTensorView values, Device device, std::int64_t pad)
      : memory_(values.shape(), values.dtype(), device, pad) {
    // `values` may be on the CPU or on `device`.
    Stream& stream = default_stream(device);
    copy(values, memory_.view(), stream);
    stream.synchronize();
  }
  TensorView view() const { return memory_.view(); }
  void expect_untouched(const std::string& what) const { memory_.expect_untouched(what); }

 private:
  Guarded memory_;
};

// y = x weight^T + bias for x [rows, in]. Each of the `in` products is rounded at most once (not at
// all in an FMA) and takes part in at most `in` additions; the bias is one more.
inline std::vector<Bounded> matmul_reference(const Tensor& x, const Tensor& weight,
                                             const Tensor& bias) {
  const std::vector<double> xs = values(x);
  const std::vector<double> ws = values(weight);
  const std::vector<double> bs = bias ? values(bias) : std::vector<double>();
  const auto in = static_cast<std::size_t>(weight.dim(1));
  const auto out = static_cast<std::size_t>(weight.dim(0));
  const auto rows = static_cast<std::size_t>(x.dim(0));
  std::vector<Bounded> y;
  y.reserve(rows * out);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < out; ++o) {
      double sum = 0;
      double magnitude = 0;
      for (std::size_t i = 0; i < in; ++i) {
        const double product = xs[r * in + i] * ws[o * in + i];
        sum += product;
        magnitude += std::abs(product);
      }
      double bound = (static_cast<double>(in) + 1) * f32_roundoff * magnitude;
      if (bias) {
        sum += bs[o];
        bound += f32_roundoff * (std::abs(sum) + bound);
      }
      y.push_back({sum, bound});
    }
  }
  return y;
}

struct NormReference {
  std::vector<Bounded> sum;
  std::vector<Bounded> y;
};

// x, residual [rows, channels] and weight [channels] may be absent. The sum is rounded once, which
// its storage accounts for. In y: the squares carry 2 roundings of the sum and their own, and
// `channels` additions; the root halves that; the division by channels, + epsilon, root, reciprocal
// and the two products are one each, and the sum itself another.
inline NormReference norm_reference(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    double epsilon) {
  const std::vector<double> xs = x ? values(x) : std::vector<double>();
  const std::vector<double> rs = residual ? values(residual) : std::vector<double>();
  const std::vector<double> ws = weight ? values(weight) : std::vector<double>();
  const Shape& shape = x ? x.shape() : residual.shape();
  const auto channels = static_cast<std::size_t>(shape.back());
  const auto rows = static_cast<std::size_t>(shape.count()) / channels;
  NormReference reference;
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<double> sum(channels, 0.0);
    double squares = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      if (x) sum[c] += xs[r * channels + c];
      if (residual) sum[c] += rs[r * channels + c];
      squares += sum[c] * sum[c];
      reference.sum.push_back({sum[c], 0});
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(channels) + epsilon);
    const double roundings = (static_cast<double>(channels) + 3) / 2 + 1.5 + 5;
    for (std::size_t c = 0; c < channels; ++c) {
      const double y = sum[c] * scale * (weight ? ws[c] : 1.0);
      reference.y.push_back({y, roundings * f32_roundoff * std::abs(y)});
    }
  }
  return reference;
}

}  // namespace mamba::testing
