#include "memory.hpp"

#include <cstdint>
#include <cstdio>
#include <string>

#include <mamba/error.hpp>
#include <mamba/state.hpp>
#include <mamba/weights.hpp>

#include "../host_memory.hpp"

namespace {

std::string gib(double bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%.4g GiB", bytes / (1 << 30));
  return text;
}

double size(mamba::DType dtype) { return static_cast<double>(mamba::size_of(dtype)); }

double bytes(const mamba::Shape& shape, mamba::DType dtype) {
  return static_cast<double>(shape.count()) * size(dtype);
}

}  // namespace

double bytes_of_state(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const mamba::LanguageModelConfig whole = config.resolved();
  double layer = 0;
  for (const mamba::StateTensor& one : mamba::state_tensors) {
    layer += bytes(one.shape(whole.layer, 1), one.f32 ? mamba::DType::f32 : dtype);
  }
  return static_cast<double>(whole.n_layer) * layer;
}

double bytes_of_generator(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const auto vocab = static_cast<double>(config.vocab_size);
  return bytes_of_state(config, dtype) +
         vocab * (size(mamba::DType::f32) + size(mamba::DType::i32));
}

double bytes_of_model(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const mamba::LanguageModelConfig whole = config.resolved();
  const auto d_model = static_cast<double>(whole.layer.d_model);
  const mamba::LayerWeights none;
  double layer = d_model * size(mamba::DType::f32);  // its norm
  mamba::LayerWeights::each(none, whole.layer, dtype,
                            [&](const char*, const mamba::Tensor&, const mamba::Shape& shape,
                                mamba::DType type) { layer += bytes(shape, type); });
  const double rows = static_cast<double>(whole.vocab_rows) * (whole.tie_embeddings ? 1 : 2);
  return static_cast<double>(whole.n_layer) * layer + rows * d_model * size(dtype);
}

double bytes_of_call(const mamba::LanguageModelConfig& config, double tokens) {
  const mamba::LanguageModelConfig whole = config.resolved();
  return tokens * (2 * static_cast<double>(whole.layer.d_inner) * size(mamba::DType::bf16) +
                   static_cast<double>(whole.layer.d_model) * size(mamba::DType::f32));
}

void check_memory(const char* command, const char* flag, const char* what, double bytes,
                  mamba::Device device) {
  if (device.is_cuda()) return;
  const auto there = static_cast<double>(host_memory());
  if (bytes <= there) return;
  throw mamba::Error(command, flag, "what fits in the " + gib(there) + " of memory of this machine",
                     gib(bytes) + " for " + what);
}
