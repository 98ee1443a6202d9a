#include "rl/agent/gru_controller.hpp"

#include <mamba/layer.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "rl/agent/initialise.hpp"
#include "rl/gru/gru.hpp"

namespace mamba_rl {

namespace {

using mamba::DType;
using mamba::Shape;
using mamba::Tensor;

struct GruTape : ControllerTape {
  Tensor x, reset, before, slopes;
};

// h of the only layer as a matrix.
mamba::TensorView hidden(mamba::StackState& state) {
  Tensor& ssm = state.layers.front().ssm;
  return ssm.view().reshape({ssm.dim(0), ssm.dim(1)});
}

// Memory that is used again.
void prepare(Tensor& tensor, const Shape& shape, mamba::ConstTensorView like) {
  if (tensor.shape() != shape) tensor = Tensor(shape, like.dtype(), like.device());
}

void keep(mamba::ConstTensorView from, Tensor& to, mamba::Stream& stream) {
  if (!from) {
    to = {};
    return;
  }
  prepare(to, from.shape(), from);
  mamba::copy(from, to, stream);
}

mamba::Matmul input_projection(mamba::ConstTensorView x, const Tensor& weight, const Tensor& bias,
                               mamba::TensorView y) {
  mamba::Matmul product;
  product.x = x;
  product.weight = weight;
  product.bias = bias;
  product.y = y;
  return product;
}

// b_hh, PyTorch's but for z: h decays by sigmoid(b_z) a step, so its memory is 1 + exp(b_z) steps.
Tensor hidden_bias(std::int64_t width, float bound, float memory, Initialiser& draw) {
  constexpr float shortest = 1.5f;
  Tensor bias = draw.uniform({3 * width}, bound, mamba::Device::cpu());
  const Tensor places = draw.uniform({width}, 1, mamba::Device::cpu());  // -1 to 1
  for (std::int64_t i = 0; i < width; ++i) {
    const float place = (places.data<float>()[i] + 1) / 2;
    const float steps = shortest * std::pow(std::max(memory / shortest, 1.0f), place);
    bias.data<float>()[width + i] = std::log(steps - 1);
  }
  return bias;
}

}  // namespace

GruController::GruController(const ControllerConfig& config, mamba::Device device)
    : width_(config.width) {
  const Shape matrix{3 * width_, width_}, vector{3 * width_};
  Initialiser draw(config.seed);
  const float bound = 1 / std::sqrt(static_cast<float>(width_));  // PyTorch's
  weights_ = {draw.uniform(matrix, bound, device), draw.uniform(matrix, bound, device),
              draw.uniform(vector, bound, device),
              hidden_bias(width_, bound, config.memory, draw).to(device)};
  gradients_ = {
      Tensor::zeros(matrix, DType::f32, device), Tensor::zeros(matrix, DType::f32, device),
      Tensor::zeros(vector, DType::f32, device), Tensor::zeros(vector, DType::f32, device)};
}

mamba::StackState GruController::make_state(std::int64_t batch) const {
  mamba::LayerConfig one_number_a_unit;
  one_number_a_unit.d_model = one_number_a_unit.d_inner = width_;
  one_number_a_unit.d_state = 1;
  one_number_a_unit.d_conv = 1;
  return mamba::StackState(one_number_a_unit, 1, batch, DType::f32, weights_.weight_ih.device());
}

std::unique_ptr<ControllerTape> GruController::make_tape() const {
  return std::make_unique<GruTape>();
}

void GruController::forward(mamba::ConstTensorView x, mamba::StackState& state,
                            mamba::ConstTensorView reset, mamba::TensorView y, ControllerTape* tape,
                            mamba::Stream& stream) const {
  mamba::Scratch scratch(stream);
  const mamba::TensorView inputs = scratch.take({x.dim(0), x.dim(1), 3 * width_}, DType::f32);
  run(input_projection(x, weights_.weight_ih, weights_.bias_ih, inputs), stream);
  GruSequence sequence;
  sequence.inputs = inputs;
  sequence.weight = weights_.weight_hh;
  sequence.bias = weights_.bias_hh;
  sequence.initial_state = sequence.final_state = hidden(state);
  sequence.reset = reset;
  sequence.y = y;
  if (tape != nullptr) {
    auto& kept = static_cast<GruTape&>(*tape);
    keep(x, kept.x, stream);
    keep(reset, kept.reset, stream);
    prepare(kept.before, y.shape(), y);
    prepare(kept.slopes, y.shape().with(2, 5 * width_), y);
    sequence.before = kept.before;
    sequence.slopes = kept.slopes;
  }
  run(sequence, stream);
}

void GruController::backward(ControllerTape& tape, mamba::ConstTensorView dy,
                             mamba::StackState* dstate, mamba::TensorView dx, mamba::Stream& stream,
                             const mamba::BackwardOptions& options) {
  auto& kept = static_cast<GruTape&>(tape);
  mamba::Scratch scratch(stream);
  GruSequenceGrad sequence;
  sequence.weight = weights_.weight_hh;
  sequence.reset = kept.reset;
  sequence.before = kept.before;
  sequence.slopes = kept.slopes;
  sequence.dy = dy;
  if (dstate != nullptr) sequence.dfinal_state = sequence.dinitial_state = hidden(*dstate);
  sequence.dgates = scratch.take(dy.shape().with(2, 4 * width_), DType::f32);
  sequence.dweight = gradients_.weight_hh;
  sequence.dbias = gradients_.bias_hh;
  sequence.dinput_bias = gradients_.bias_ih;
  sequence.accumulate = options.accumulate;
  run(sequence, stream);
  mamba::LinearGrad input;
  input.x = kept.x;
  input.weight = weights_.weight_ih;
  input.dy = sequence.dgates.columns(0, 3 * width_);
  input.dx = dx;
  input.dweight = gradients_.weight_ih;
  input.accumulate = options.accumulate;
  run(input, stream);
}

std::vector<mamba::Parameter> GruController::parameters() {
  return {{"weight_ih", weights_.weight_ih, gradients_.weight_ih},
          {"weight_hh", weights_.weight_hh, gradients_.weight_hh},
          {"bias_ih", weights_.bias_ih, gradients_.bias_ih, false},
          {"bias_hh", weights_.bias_hh, gradients_.bias_hh, false}};
}

}  // namespace mamba_rl
