#include "host/model/model_checks.hpp"

#include <fmt/format.h>

#include <string>

#include <mamba/check.hpp>

namespace mamba {

namespace {

void check_state(const char* where, const Layer& layer, const MambaState& state, std::int64_t rows,
                 Device device) {
  for (const StateTensor& one : state_tensors) {
    const Tensor& tensor = state.*one.tensor;
    const Shape shape = one.shape(layer.config(), rows);
    const DType dtype = one.f32 ? DType::f32 : layer.dtype();
    const bool right =
        tensor.shape() == shape && tensor.dtype() == dtype && tensor.device() == device;
    if (right) continue;  // a name takes memory
    const std::string name = std::string("state.") + one.name;
    check::is(where, name.c_str(), tensor, shape, dtype, device);
  }
}

}  // namespace

void check_state(const char* where, const Layer& layer, const MambaState& state,
                 std::int64_t rows) {
  check_state(where, layer, state, rows, layer.device());
}

void check_gradients(const char* where, const Layer& layer, const LayerWeights& gradients) {
  LayerWeights::each(gradients, layer.config(), DType::f32,
                     [&](const char* name, const Tensor& tensor, const Shape& shape, DType type) {
                       const bool right = tensor.shape() == shape && tensor.dtype() == type &&
                                          tensor.device() == layer.device();
                       if (!tensor || right) return;  // a name takes memory
                       const std::string full = std::string("gradients.") + name;
                       check::is(where, full.c_str(), tensor, shape, type, layer.device());
                     });
}

void check_state(const char* where, const Stack& stack, const StackState& state,
                 std::int64_t rows) {
  check_state(where, stack, state, rows, stack.device());
}

void check_state(const char* where, const Stack& stack, const StackState& state, std::int64_t rows,
                 Device device) {
  if (state.layers.size() != stack.size()) {
    throw ArgumentError(where, "state", fmt::format("{} layers", stack.size()),
                        fmt::format("{}", state.layers.size()));
  }
  for (std::size_t i = 0; i < stack.size(); ++i)
    check_state(where, stack.layer(i), state.layers[i], rows, device);
}

void check_gradients(const char* where, const Stack& stack, const StackWeights& gradients) {
  if (gradients.layers.size() != stack.size() || gradients.norms.size() != stack.size()) {
    throw ArgumentError(where, "gradients",
                        fmt::format("{} layers and as many norms", stack.size()),
                        fmt::format("{} and {}", gradients.layers.size(), gradients.norms.size()));
  }
  const Shape norm{stack.norm(stack.size()).dim(0)};
  for (std::size_t i = 0; i < stack.size(); ++i) {
    check_gradients(where, stack.layer(i), gradients.layers[i]);
    if (gradients.norms[i]) {
      check::is(where, "gradients.norm.weight", gradients.norms[i], norm, DType::f32,
                stack.device());
    }
  }
  if (gradients.norm_f) {
    check::is(where, "gradients.norm_f.weight", gradients.norm_f, norm, DType::f32, stack.device());
  }
}

void check_gradients(const char* where, const LanguageModel& model,
                     const LanguageModelWeights& gradients) {
  const LanguageModelConfig& config = model.config();
  check_gradients(where, model.stack(), gradients.stack);
  const Shape vocabulary{config.vocab_rows, config.layer.d_model};
  if (gradients.embedding) {
    check::is(where, "gradients.embeddings.weight", gradients.embedding, vocabulary, DType::f32,
              model.device());
  }
  if (gradients.head) {
    check::is(where, "gradients.lm_head.weight", gradients.head, vocabulary, DType::f32,
              model.device());
  }
}

}  // namespace mamba
