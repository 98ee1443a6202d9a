#include <fmt/format.h>

#include <cmath>

#include "host/model/mamba1/mamba1_mixer.hpp"

namespace mamba {

namespace {

constexpr const char* falcon = "falcon_mamba";

}  // namespace

LayerConfig Mamba1Mixer::resolve(LayerConfig c, const Complain& complain) const {
  if (c.d_state == 0) c.d_state = 16;
  if (c.head_dim != 0) complain("head_dim", "0 (Mamba-2 has it)", fmt::format("{}", c.head_dim));
  if (c.groups != 0) complain("groups", "0 (Mamba-2 has it)", fmt::format("{}", c.groups));
  if (!c.rmsnorm) complain("rmsnorm", "true (Mamba-2 has it)", "false");
  if (c.norm_before_gate) complain("norm_before_gate", "false (Mamba-2 has it)", "true");
  if (c.dt_low != 0) complain("dt_low", "0 (Mamba-2 has it)", fmt::format("{}", c.dt_low));
  if (!std::isinf(c.dt_high)) {
    complain("dt_high", "infinity (Mamba-2 has it)", fmt::format("{}", c.dt_high));
  }
  limits::range(complain, "d_model", c.d_model, 1, limits::size);
  limits::range(complain, "d_state", c.d_state, 1, limits::d_state);
  limits::range(complain, "d_conv", c.d_conv, 1, limits::size);
  limits::range(complain, "expand", c.expand, 1, limits::size);
  if (c.d_inner == 0) c.d_inner = c.expand * c.d_model;
  if (c.dt_rank == 0) c.dt_rank = (c.d_model + 15) / 16;
  limits::range(complain, "d_inner", c.d_inner, 1, limits::size);
  limits::range(complain, "dt_rank", c.dt_rank, 1, limits::size);
  limits::product(complain, "2 * d_inner * d_model", 2 * c.d_inner, c.d_model);
  limits::product(complain, "d_inner * d_conv", c.d_inner, c.d_conv);
  limits::product(complain, "d_inner * (dt_rank + 2 * d_state)", c.d_inner,
                  c.dt_rank + 2 * c.d_state);
  limits::positive(complain, "norm_dt_b_c_epsilon", c.norm_dt_b_c_epsilon);
  limits::positive(complain, "gated_norm_epsilon", c.gated_norm_epsilon);
  limits::between(complain, "initial_D", c.initial_D, -limits::largest, "a number");
  limits::positive(complain, "dt_min", c.dt_min);
  limits::between(complain, "dt_max", c.dt_max, c.dt_min, "a number of at least dt_min");
  limits::positive(complain, "dt_floor", c.dt_floor);
  limits::positive(complain, "dt_scale", c.dt_scale);
  return c;
}

std::vector<std::string> Mamba1Mixer::identity(const LayerConfig& c) const {
  std::vector<std::string> texts{
      fmt::format("{} {} {} {} {} {} {} {}", c.d_model, c.d_state, c.d_conv, c.d_inner, c.dt_rank,
                  c.use_bias, c.use_conv_bias, c.norm_dt_b_c ? c.norm_dt_b_c_epsilon : -1.0f)};
  if (c.gated_norm) texts.push_back(fmt::format("gated_norm {}", c.gated_norm_epsilon));
  return texts;
}

void Mamba1Mixer::read_mamba_ssm(const Fields& ssm_cfg, LayerConfig& layer) const {
  ssm_cfg.no_others({"layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max",
                     "dt_init", "dt_scale", "dt_init_floor", "conv_bias", "bias", "use_fast_path"},
                    "an option of Mamba1");
  layer.d_state = ssm_cfg.size_or("d_state", layer.d_state, limits::d_state);
  layer.d_conv = ssm_cfg.size_or("d_conv", layer.d_conv);
  layer.expand = ssm_cfg.size_or("expand", layer.expand);
  layer.dt_rank = ssm_cfg.rank("dt_rank");
  layer.use_bias = ssm_cfg.flag_or("bias", false);
  layer.use_conv_bias = ssm_cfg.flag_or("conv_bias", true);
  layer.dt_min = ssm_cfg.positive_or("dt_min", layer.dt_min);
  layer.dt_max = ssm_cfg.positive_or("dt_max", layer.dt_max);
  layer.dt_floor = ssm_cfg.positive_or("dt_init_floor", layer.dt_floor);
  layer.dt_scale = ssm_cfg.positive_or("dt_scale", layer.dt_scale);
}

std::vector<const char*> Mamba1Mixer::model_types() const { return {"mamba", falcon}; }

PublishedAs Mamba1Mixer::published_as(const LayerConfig& config) const {
  if (config.norm_dt_b_c) return {falcon, "FalconMambaForCausalLM"};
  return {"mamba", "MambaForCausalLM"};
}

// transformers' default of biases is true, while every published checkpoint has none.
void Mamba1Mixer::read_hugging_face(const Fields& file, const std::string& model_type,
                                    LayerConfig& layer) const {
  layer.d_model = file.size("hidden_size");
  layer.d_state = file.size_or("state_size", layer.d_state, limits::d_state);
  layer.d_conv = file.size_or("conv_kernel", layer.d_conv);
  layer.expand = file.size_or("expand", layer.expand);
  layer.d_inner = file.size_or("intermediate_size", 0);
  layer.dt_rank = file.rank("time_step_rank");
  layer.use_bias = file.flag_or("use_bias", false);
  layer.use_conv_bias = file.flag_or("use_conv_bias", true);
  layer.dt_min = file.positive_or("time_step_min", layer.dt_min);
  layer.dt_max = file.positive_or("time_step_max", layer.dt_max);
  layer.dt_floor = file.positive_or("time_step_floor", layer.dt_floor);
  layer.dt_scale = file.positive_or("time_step_scale", layer.dt_scale);
  layer.norm_dt_b_c = model_type == falcon;
  if (layer.norm_dt_b_c) {
    layer.norm_dt_b_c_epsilon = file.positive_or("mixer_rms_eps", layer.norm_dt_b_c_epsilon);
  }
}

void Mamba1Mixer::write(const LayerConfig& layer, Json& json) const {
  json.set("hidden_size", layer.d_model);
  json.set("intermediate_size", layer.d_inner);
  json.set("state_size", layer.d_state);
  json.set("conv_kernel", layer.d_conv);
  json.set("expand", layer.expand);
  json.set("time_step_rank", layer.dt_rank);
  json.set("time_step_min", number(layer.dt_min));
  json.set("time_step_max", number(layer.dt_max));
  json.set("time_step_floor", number(layer.dt_floor));
  json.set("time_step_scale", number(layer.dt_scale));
  json.set("use_bias", layer.use_bias);
  json.set("use_conv_bias", layer.use_conv_bias);
  if (!json.contains("time_step_init_scheme")) json.set("time_step_init_scheme", "random");
  if (layer.norm_dt_b_c) {
    json.set("mixer_rms_eps", number(layer.norm_dt_b_c_epsilon));
  } else {
    json.erase("mixer_rms_eps");
  }
}

std::vector<const char*> Mamba1Mixer::own_keys() const {
  return {"gated_norm", "gated_norm_epsilon", "initial_D"};
}

void Mamba1Mixer::read_own_options(const Fields& own, LayerConfig& layer) const {
  layer.gated_norm = own.flag_or("gated_norm", false);
  layer.gated_norm_epsilon = own.positive_or("gated_norm_epsilon", layer.gated_norm_epsilon);
  layer.initial_D = own.number_or("initial_D", layer.initial_D);
}

void Mamba1Mixer::write_own_options(const LanguageModelConfig& config, Json& own) const {
  const LayerConfig& layer = config.layer;
  if (layer.gated_norm) {
    own.set("gated_norm", true);
    own.set("gated_norm_epsilon", number(layer.gated_norm_epsilon));
  }
  if (layer.initial_D != LayerConfig().initial_D) own.set("initial_D", number(layer.initial_D));
}

bool Mamba1Mixer::owns(const std::function<bool(const char*)>& has) const {
  return has("x_proj.weight");
}

}  // namespace mamba
