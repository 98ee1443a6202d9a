#include <cmath>

#include "host/model/draws.hpp"
#include "host/model/mamba2/mamba2_mixer.hpp"

namespace mamba {

detail::LayerWeightList Mamba2Mixer::weights(const LayerConfig& c, DType dtype) const {
  using W = LayerWeights;
  constexpr DType f32 = DType::f32;
  constexpr bool decays = true, wanted = true;
  const std::int64_t channels = c.conv_channels();
  const Shape conv{channels, c.d_conv}, published_conv{channels, 1, c.d_conv};
  return {
      {"in_proj.weight", &W::in_proj, {projected_channels(c), c.d_model}, dtype, decays},
      {"in_proj.bias", &W::in_proj_bias, {projected_channels(c)}, dtype, !decays, c.use_bias},
      {"conv1d.weight", &W::conv_weight, conv, f32, !decays, wanted, published_conv},
      {"conv1d.bias", &W::conv_bias, {channels}, f32, !decays, c.use_conv_bias},
      {"dt_bias", &W::dt_bias, {c.heads()}, f32},
      {"A_log", &W::A_log, {c.heads()}, f32},
      {"D", &W::D, {c.heads()}, f32},
      {"norm.weight", &W::gated_norm_weight, {c.d_inner}, f32, !decays, c.rmsnorm},
      {"out_proj.weight", &W::out_proj, {c.d_model, c.d_inner}, dtype, decays},
      {"out_proj.bias", &W::out_proj_bias, {c.d_model}, dtype, !decays, c.use_bias},
  };
}

// As mamba_ssm has it; in the conversion of transformers A_log of head k would be log(k + 1).
LayerWeights Mamba2Mixer::random(const LayerConfig& c, DType dtype, std::uint64_t seed,
                                 std::uint64_t layer, std::int64_t n_layer) const {
  const auto numbers = [&](std::uint64_t tensor) {
    return draws::Numbers(seed, layer * 16 + tensor);
  };
  const std::int64_t channels = c.conv_channels();
  LayerWeights w;
  w.in_proj = draws::symmetric({projected_channels(c), c.d_model}, dtype, draws::fan_in(c.d_model),
                               numbers(0));
  w.conv_weight =
      draws::symmetric({channels, c.d_conv}, DType::f32, draws::fan_in(c.d_conv), numbers(1));
  if (c.use_conv_bias) {
    w.conv_bias = draws::symmetric({channels}, DType::f32, draws::fan_in(c.d_conv), numbers(2));
  }
  w.dt_bias = draws::dt_bias(c.heads(), c, numbers(3));
  const draws::Numbers A = numbers(4);
  w.A_log = draws::filled({c.heads()}, DType::f32,
                          [&](std::int64_t i) { return std::log(A.between(i, 1, 16)); });
  w.D = draws::constant({c.heads()}, DType::f32, c.initial_D);
  if (c.rmsnorm) w.gated_norm_weight = draws::constant({c.d_inner}, DType::f32, 1);
  w.out_proj = draws::symmetric({c.d_model, c.d_inner}, dtype,
                                draws::fan_in(c.d_inner) * draws::fan_in(n_layer), numbers(5));
  if (c.use_bias) {
    w.in_proj_bias = draws::constant({projected_channels(c)}, dtype, 0);
    w.out_proj_bias = draws::constant({c.d_model}, dtype, 0);
  }
  return w;
}

}  // namespace mamba
