#include "memory.hpp"

#include <cstdint>
#include <cstdio>
#include <string>

#include <mamba/error.hpp>

#include "../host_memory.hpp"

namespace {

std::string gib(double bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%.4g GiB", bytes / (1 << 30));
  return text;
}

double size(mamba::DType dtype) { return static_cast<double>(mamba::size_of(dtype)); }

}  // namespace

double bytes_of_state(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const mamba::LanguageModelConfig whole = config.resolved();
  const auto& layer = whole.layer;
  const auto inner = static_cast<double>(layer.d_inner);
  return static_cast<double>(whole.n_layer) * inner *
         (static_cast<double>(layer.d_conv - 1) * size(dtype) +
          static_cast<double>(layer.d_state) * size(mamba::DType::f32));
}

double bytes_of_generator(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const auto vocab = static_cast<double>(config.vocab_size);
  return bytes_of_state(config, dtype) +
         vocab * (size(mamba::DType::f32) + size(mamba::DType::i32));
}

double bytes_of_model(const mamba::LanguageModelConfig& config, mamba::DType dtype) {
  const mamba::LanguageModelConfig whole = config.resolved();
  const auto& layer = whole.layer;
  const auto inner = static_cast<double>(layer.d_inner);
  const auto model = static_cast<double>(layer.d_model);
  const double matrices = inner * (3 * model + 2 * static_cast<double>(layer.dt_rank) +
                                   2 * static_cast<double>(layer.d_state));
  const double rows = static_cast<double>(whole.vocab_rows) * (whole.tie_embeddings ? 1 : 2);
  return (static_cast<double>(whole.n_layer) * matrices + rows * model) * size(dtype);
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
