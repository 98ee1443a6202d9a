// Fresh weights: the same for a seed on every machine.
#pragma once

#include <mamba/tensor.hpp>

#include "rl/random.hpp"

namespace mamba_rl {

// Draws one tensor after the other.
class Initialiser {
 public:
  explicit Initialiser(std::uint64_t seed) : seed_(seed) {}

  // Between -bound and bound, f32.
  mamba::Tensor uniform(const mamba::Shape& shape, float bound, mamba::Device device) {
    mamba::Tensor host(shape, mamba::DType::f32);
    ++drawn_;
    for (std::int64_t i = 0; i < host.count(); ++i) {
      const auto element = static_cast<std::uint32_t>(i);
      host.data<float>()[i] =
          bound * (2 * open_uniform(philox(seed_, {element, drawn_, 0, for_weights}).a) - 1);
    }
    return host.to(device);
  }

 private:
  static constexpr std::uint32_t for_weights = 16;  // beside environment.hpp's purposes
  std::uint64_t seed_;
  std::uint32_t drawn_ = 0;
};

}  // namespace mamba_rl
