// Fresh weights: tensors filled with numbers that are the same on every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include <mamba/config.hpp>
#include <mamba/tensor.hpp>

#include "detail/philox.hpp"

namespace mamba::draws {

// Numbers in [0, 1) for one tensor: word i of the tensor numbered `tensor`, keyed by the seed.
class Numbers {
 public:
  Numbers(std::uint64_t seed, std::uint64_t tensor) : seed_(seed), tensor_(tensor) {}

  double uniform(std::int64_t i) const {
    const auto index = static_cast<std::uint64_t>(i);
    return detail::uniform(detail::philox(
        seed_, {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                static_cast<std::uint32_t>(tensor_), static_cast<std::uint32_t>(tensor_ >> 32)}));
  }
  double between(std::int64_t i, double low, double high) const {
    return low + (high - low) * uniform(i);
  }
  double normal(std::int64_t i) const {  // Box-Muller
    return std::sqrt(-2 * std::log1p(-uniform(2 * i))) *
           std::cos(6.283185307179586 * uniform(2 * i + 1));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t tensor_;
};

// tensor[i] = value(i), through f32 to the tensor's dtype.
template <class Value>
Tensor filled(const Shape& shape, DType dtype, Value value) {
  Tensor tensor(shape, DType::f32);
  auto* data = tensor.data<float>();
  for (std::int64_t i = 0; i < shape.count(); ++i) data[i] = static_cast<float>(value(i));
  return dtype == DType::f32 ? std::move(tensor) : tensor.to(Device::cpu(), dtype);
}

inline Tensor symmetric(const Shape& shape, DType dtype, double bound, const Numbers& numbers) {
  return filled(shape, dtype, [&](std::int64_t i) { return numbers.between(i, -bound, bound); });
}

inline Tensor constant(const Shape& shape, DType dtype, double value) {
  return filled(shape, dtype, [&](std::int64_t) { return value; });
}

// The published bound of a matrix whose rows have n elements.
inline double fan_in(std::int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); }

// softplus of it is log-uniform in [dt_min, dt_max] and not below dt_floor.
inline Tensor dt_bias(std::int64_t count, const LayerConfig& c, const Numbers& numbers) {
  return filled({count}, DType::f32, [&](std::int64_t i) {
    const double dt = std::exp(numbers.between(i, std::log(c.dt_min), std::log(c.dt_max)));
    const double floored = std::max<double>(dt, c.dt_floor);
    return floored + std::log(-std::expm1(-floored));  // the inverse of softplus
  });
}

}  // namespace mamba::draws
