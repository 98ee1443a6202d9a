// Gradients through a state: in at the final one, out at the initial one.
#include "recipe.hpp"

using namespace mamba;

int main() {
  Claims claims;
  constexpr std::int64_t d_model = 8, time = 12;
  LayerConfig config;
  config.d_model = d_model;
  const Layer layer = Layer::random(config, /*seed=*/1);
  std::vector<float> values(time * d_model);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  const Tensor x = Tensor::from(values, {1, time, d_model});
  const Tensor dy = Tensor::full({1, time, d_model}, 1, DType::f32);  // of the sum of all y
  Stream& stream = default_stream();
  // [begin]
  // The gradient of the sum of y with respect to the state that the sequence begins with, through
  // pieces of `piece` steps.
  const auto gradient = [&](std::int64_t piece) {
    MambaState state = layer.make_state(1);
    Tensor y({1, time, d_model}, DType::f32);
    std::vector<LayerTape> tapes(static_cast<std::size_t>(time / piece));  // one for each piece
    for (std::int64_t i = 0; i < time / piece; ++i) {
      LayerOptions options;
      options.tape = &tapes[static_cast<std::size_t>(i)];
      layer.forward(x.view().steps(i * piece, piece), state, y.view().steps(i * piece, piece),
                    stream, options);
    }
    MambaState dstate = layer.make_state(1);  // zero: nothing follows the last piece
    LayerWeights gradients = zero_gradients(config);
    BackwardOptions options;
    options.accumulate = true;  // of the weights, over the pieces
    for (std::int64_t i = time / piece; i-- > 0;) {
      layer.backward(tapes[static_cast<std::size_t>(i)], dy.view().steps(i * piece, piece), &dstate,
                     {}, gradients, stream, options);
    }
    return dstate.ssm.to_vector<float>();
  };
  const std::vector<float> whole = gradient(time);
  claims.close("pieces hand the gradient on", whole, gradient(4));
  // [end]

  // The slope of the same sum along the gradient is its squared length.
  const auto sum_from = [&](float step) {
    MambaState state = layer.make_state(1);
    for (std::size_t i = 0; i < whole.size(); ++i) state.ssm.data<float>()[i] = step * whole[i];
    double sum = 0;
    for (const float value : layer.forward(x, state).to_vector<float>()) sum += value;
    return sum;
  };
  double squared = 0;
  for (const float value : whole) squared += static_cast<double>(value) * value;
  const double slope = (sum_from(1) - sum_from(-1)) / 2;  // y is linear in the state
  claims.that("it is the slope of what it is the gradient of",
              squared > 0 && std::abs(slope / squared - 1) < 1e-3);
  return claims.exit_code();
}
