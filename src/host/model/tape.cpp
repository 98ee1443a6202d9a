#include <mamba/tape.hpp>

namespace mamba {

std::int64_t LayerTape::bytes() const {
  std::int64_t sum = 0;
  for (const Tensor* tensor : {&x_, &reset_}) sum += tensor->bytes();
  initial_.each([&](const char*, const Tensor& tensor) { sum += tensor.bytes(); });
  for (const Tensor& tensor : activations_) sum += tensor.bytes();
  return sum;
}

std::int64_t StackTape::bytes() const {
  std::int64_t sum = 0;
  for (const LayerTape& layer : layers_) sum += layer.bytes();
  for (const Tensor& tensor : sums_) sum += tensor.bytes();
  return sum;
}

}  // namespace mamba
