#include <cmath>

#include "host/model/draws.hpp"
#include "host/model/mamba1/mamba1_mixer.hpp"

namespace mamba {

detail::LayerWeightList Mamba1Mixer::weights(const LayerConfig& c, DType dtype) const {
  using W = LayerWeights;
  constexpr DType f32 = DType::f32;
  constexpr bool decays = true, wanted = true;
  const std::int64_t selection = c.dt_rank + 2 * c.d_state;
  const Shape conv{c.d_inner, c.d_conv}, published_conv{c.d_inner, 1, c.d_conv};
  return {
      {"in_proj.weight", &W::in_proj, {2 * c.d_inner, c.d_model}, dtype, decays},
      {"in_proj.bias", &W::in_proj_bias, {2 * c.d_inner}, dtype, !decays, c.use_bias},
      {"conv1d.weight", &W::conv_weight, conv, f32, !decays, wanted, published_conv},
      {"conv1d.bias", &W::conv_bias, {c.d_inner}, f32, !decays, c.use_conv_bias},
      {"x_proj.weight", &W::x_proj, {selection, c.d_inner}, dtype, decays},
      {"dt_proj.weight", &W::dt_proj, {c.d_inner, c.dt_rank}, dtype, decays},
      {"dt_proj.bias", &W::dt_bias, {c.d_inner}, f32},
      {"A_log", &W::A_log, {c.d_inner, c.d_state}, f32},
      {"D", &W::D, {c.d_inner}, f32},
      {"norm.weight", &W::gated_norm_weight, {c.d_inner}, f32, !decays, c.gated_norm},
      {"norm.bias", &W::gated_norm_bias, {c.d_inner}, f32, !decays, c.gated_norm},
      {"out_proj.weight", &W::out_proj, {c.d_model, c.d_inner}, dtype, decays},
      {"out_proj.bias", &W::out_proj_bias, {c.d_model}, dtype, !decays, c.use_bias},
  };
}

LayerWeights Mamba1Mixer::random(const LayerConfig& c, DType dtype, std::uint64_t seed,
                                 std::uint64_t layer, std::int64_t n_layer) const {
  const auto numbers = [&](std::uint64_t tensor) {
    return draws::Numbers(seed, layer * 16 + tensor);
  };
  LayerWeights w;
  w.in_proj =
      draws::symmetric({2 * c.d_inner, c.d_model}, dtype, draws::fan_in(c.d_model), numbers(0));
  w.conv_weight =
      draws::symmetric({c.d_inner, c.d_conv}, DType::f32, draws::fan_in(c.d_conv), numbers(1));
  if (c.use_conv_bias) {
    w.conv_bias = draws::symmetric({c.d_inner}, DType::f32, draws::fan_in(c.d_conv), numbers(2));
  }
  w.x_proj = draws::symmetric({c.dt_rank + 2 * c.d_state, c.d_inner}, dtype,
                              draws::fan_in(c.d_inner), numbers(3));
  w.dt_proj = draws::symmetric({c.d_inner, c.dt_rank}, dtype, c.dt_scale * draws::fan_in(c.dt_rank),
                               numbers(4));
  w.dt_bias = draws::dt_bias(c.d_inner, c, numbers(5));
  w.A_log = draws::filled({c.d_inner, c.d_state}, DType::f32, [&](std::int64_t i) {
    return std::log(static_cast<double>(i % c.d_state + 1));
  });
  w.D = draws::constant({c.d_inner}, DType::f32, c.initial_D);
  if (c.gated_norm) {
    w.gated_norm_weight = draws::constant({c.d_inner}, DType::f32, 1);
    w.gated_norm_bias = draws::constant({c.d_inner}, DType::f32, 0);
  }
  w.out_proj = draws::symmetric({c.d_model, c.d_inner}, dtype,
                                draws::fan_in(c.d_inner) * draws::fan_in(n_layer), numbers(6));
  if (c.use_bias) {
    w.in_proj_bias = draws::constant({2 * c.d_inner}, dtype, 0);
    w.out_proj_bias = draws::constant({c.d_model}, dtype, 0);
  }
  return w;
}

}  // namespace mamba
