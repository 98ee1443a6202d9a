// What a model's forward promises its stream, so that kernels fetch weights early.
#pragma once

#include <mamba/stream.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// While this object lives, the caller promises that no work queued on the stream writes weights
// (matrices, biases, norm weights) which an operation queued in the same period reads. A CUDA
// kernel may then fetch its weights while the kernels before it still run. Work queued before the
// promise may still write them. Scopes nest.
class ConstantWeights {
 public:
  explicit ConstantWeights(Stream& stream);
  ~ConstantWeights();
  ConstantWeights(const ConstantWeights&) = delete;
  ConstantWeights& operator=(const ConstantWeights&) = delete;

 private:
  Stream& stream_;
};

}  // namespace detail
}  // namespace mamba
