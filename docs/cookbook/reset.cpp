// A batch of episodes, each of which ends when it ends.
#include "recipe.hpp"

using namespace mamba;

int main() {
  Claims claims;
  constexpr std::int64_t d_model = 8, time = 10;
  LayerConfig config;
  config.d_model = d_model;
  const Layer layer = Layer::random(config, /*seed=*/1);
  std::vector<float> values(2 * time * d_model);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  const Tensor x = Tensor::from(values, {2, time, d_model});
  Stream& stream = default_stream();
  // [begin]
  // Two environments, ten steps. In the second an episode begins at step 6.
  std::vector<std::int32_t> begins(2 * time);
  begins[time + 6] = 1;
  const Tensor reset = Tensor::from(begins, {2, time});
  LayerOptions options;
  options.reset = reset;
  MambaState state = layer.make_state(2);
  Tensor y({2, time, d_model}, DType::f32);
  layer.forward(x, state, y, stream, options);  // one call for all

  // Step by step, as an agent acts: whose episode has ended is forgotten before the next step.
  MambaState acting = layer.make_state(2);
  Tensor stepped({2, time, d_model}, DType::f32);
  for (std::int64_t t = 0; t < time; ++t) {
    const Tensor ended = Tensor::from({0, t == 6 ? 1 : 0});
    acting.reset(ended);
    layer.forward(x.view().steps(t, 1), acting, stepped.view().steps(t, 1), stream);
  }
  claims.close("learning on the sequence sees what acting saw", y.to_vector<float>(),
               stepped.to_vector<float>());
  // [end]
  const auto after = [](const Tensor& of) { return of.view().rows(1, 1).steps(6, 4); };
  const Tensor fresh = layer.forward(after(x));
  claims.close("after a reset nothing is left of what came before", fresh.to_vector<float>(),
               after(y).to_vector<float>());
  const Tensor unbroken = layer.forward(x);
  claims.equal("the other episode goes on through it",
               unbroken.view().rows(0, 1).to_vector<float>(),
               y.view().rows(0, 1).to_vector<float>());
  claims.that("which the second would not be without one",
              after(unbroken).to_vector<float>() != after(y).to_vector<float>());
  return claims.exit_code();
}
