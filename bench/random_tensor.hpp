// Operands of benchmarks: speed may depend on values (zeros, denormals), so they are random.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include <mamba/tensor.hpp>

namespace mamba::bench {

// On the CPU, evenly between low and high. A block of random numbers repeated: made quickly, and no
// kernel looks further than it.
inline Tensor random_tensor(const Shape& shape, DType dtype, float low = -1, float high = 1) {
  static std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> block(65521);
  for (float& value : block) value = uniform(engine);
  const auto size = static_cast<std::int64_t>(block.size());
  Tensor tensor(shape, DType::f32);
  for (std::int64_t i = 0; i < shape.count(); i += size) {
    std::copy_n(block.data(), std::min(size, shape.count() - i), tensor.data<float>() + i);
  }
  return tensor.to(Device::cpu(), dtype);
}

}  // namespace mamba::bench
