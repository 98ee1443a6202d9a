#include <fmt/format.h>

#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "host/model/mamba2/mamba2_mixer.hpp"

namespace mamba {

namespace {

constexpr std::int64_t most_head_dim = 256;
constexpr const char* limit_key = "time_step_limit";
constexpr std::pair<float, float> no_limits{0.0f, std::numeric_limits<float>::infinity()};

void divides(const Complain& complain, const char* field, std::int64_t value, const char* what,
             std::int64_t whole) {
  if (whole % value == 0) return;
  complain(field, fmt::format("a divisor of {}, {}", what, whole), fmt::format("{}", value));
}

}  // namespace

LayerConfig Mamba2Mixer::resolve(LayerConfig c, const Complain& complain) const {
  if (c.d_state == 0) c.d_state = 128;
  if (c.head_dim == 0) c.head_dim = 64;
  if (c.groups == 0) c.groups = 1;
  if (c.dt_rank != 0) complain("dt_rank", "0 (Mamba-1 has it)", fmt::format("{}", c.dt_rank));
  if (c.norm_dt_b_c) complain("norm_dt_b_c", "false (Mamba-1 has it)", "true");
  if (c.gated_norm) complain("gated_norm", "false (Mamba-2 has a norm of its own)", "true");
  limits::range(complain, "d_model", c.d_model, 1, limits::size);
  limits::range(complain, "d_state", c.d_state, 1, limits::d_state);
  limits::range(complain, "d_conv", c.d_conv, 1, limits::size);
  limits::range(complain, "expand", c.expand, 1, limits::size);
  if (c.d_inner == 0) c.d_inner = c.expand * c.d_model;
  limits::range(complain, "d_inner", c.d_inner, 1, limits::size);
  limits::range(complain, "head_dim", c.head_dim, 1, most_head_dim);
  divides(complain, "head_dim", c.head_dim, "d_inner", c.d_inner);
  limits::range(complain, "groups", c.groups, 1, limits::size);
  divides(complain, "groups", c.groups, "heads", c.heads());
  limits::product(complain, "(conv channels + 2 * d_inner) * d_model",
                  c.conv_channels() + 2 * c.d_inner, c.d_model);
  limits::product(complain, "conv channels * d_conv", c.conv_channels(), c.d_conv);
  limits::positive(complain, "gated_norm_epsilon", c.gated_norm_epsilon);
  limits::between(complain, "initial_D", c.initial_D, -limits::largest, "a number");
  limits::positive(complain, "dt_min", c.dt_min);
  limits::between(complain, "dt_max", c.dt_max, c.dt_min, "a number of at least dt_min");
  limits::positive(complain, "dt_floor", c.dt_floor);
  limits::between(complain, "dt_low", c.dt_low, 0, "a number of at least 0");
  if (!(c.dt_high >= c.dt_low)) {
    complain("dt_high", "a number of at least dt_low, or infinity", fmt::format("{}", c.dt_high));
  }
  return c;
}

std::vector<std::string> Mamba2Mixer::identity(const LayerConfig& c) const {
  std::vector<std::string> texts{
      fmt::format("mamba2 {} {} {} {} {} {} {} {} {} {} {} {}", c.d_model, c.d_state, c.d_conv,
                  c.d_inner, c.head_dim, c.groups, c.use_bias, c.use_conv_bias, c.norm_before_gate,
                  c.gated_norm_epsilon, c.dt_low, c.dt_high)};
  if (!c.rmsnorm) texts.push_back("no norm");
  return texts;
}

void Mamba2Mixer::read_mamba_ssm(const Fields& ssm_cfg, LayerConfig& layer) const {
  ssm_cfg.no_others({"layer",        "d_state",    "d_conv",        "conv_init",
                     "expand",       "headdim",    "d_ssm",         "ngroups",
                     "A_init_range", "D_has_hdim", "rmsnorm",       "norm_before_gate",
                     "dt_min",       "dt_max",     "dt_init_floor", "dt_limit",
                     "bias",         "conv_bias",  "chunk_size",    "use_mem_eff_path"},
                    "an option of Mamba2");
  layer.d_state = ssm_cfg.size_or("d_state", 0, limits::d_state);
  layer.d_conv = ssm_cfg.size_or("d_conv", layer.d_conv);
  layer.expand = ssm_cfg.size_or("expand", layer.expand);
  layer.head_dim = ssm_cfg.size_or("headdim", 0, most_head_dim);
  layer.groups = ssm_cfg.size_or("ngroups", 0);
  layer.rmsnorm = ssm_cfg.flag_or("rmsnorm", true);
  layer.norm_before_gate = ssm_cfg.flag_or("norm_before_gate", false);
  layer.use_bias = ssm_cfg.flag_or("bias", false);
  layer.use_conv_bias = ssm_cfg.flag_or("conv_bias", true);
  layer.dt_min = ssm_cfg.positive_or("dt_min", layer.dt_min);
  layer.dt_max = ssm_cfg.positive_or("dt_max", layer.dt_max);
  layer.dt_floor = ssm_cfg.positive_or("dt_init_floor", layer.dt_floor);
  std::tie(layer.dt_low, layer.dt_high) = ssm_cfg.pair_or("dt_limit", no_limits);
  ssm_cfg.only("d_ssm", {Json(), layer.expand * layer.d_model},
               "expand d_model (this library has no MLP beside the recurrence)");
  ssm_cfg.only("D_has_hdim", {false}, "false (this library has one D for a head)");
}

std::vector<const char*> Mamba2Mixer::model_types() const { return {"mamba2"}; }

PublishedAs Mamba2Mixer::published_as(const LayerConfig&) const {
  return {"mamba2", "Mamba2ForCausalLM"};
}

// Sizes that are missing are those that transformers takes, which are Codestral's; but num_heads
// follows from the others. "norm_before_gate" of older files does nothing there: its layers gate
// first.
void Mamba2Mixer::read_hugging_face(const Fields& file, const std::string&,
                                    LayerConfig& layer) const {
  layer.d_model = file.size("hidden_size");
  layer.d_state = file.size_or("state_size", 0, limits::d_state);
  layer.d_conv = file.size_or("conv_kernel", layer.d_conv);
  layer.expand = file.size_or("expand", layer.expand);
  layer.d_inner = file.within("mamba_cpp").size_or("d_inner", layer.expand * layer.d_model);
  layer.head_dim = file.size_or("head_dim", 64, most_head_dim);
  layer.groups = file.size_or("n_groups", 8);
  if (file.has("num_heads") && file.size("num_heads") * layer.head_dim != layer.d_inner) {
    file.refuse("num_heads", fmt::format("expand hidden_size, {}, over head_dim, {}", layer.d_inner,
                                         layer.head_dim));
  }
  layer.use_bias = file.flag_or("use_bias", false);
  layer.use_conv_bias = file.flag_or("use_conv_bias", true);
  layer.gated_norm_epsilon = file.positive_or("layer_norm_epsilon", layer.gated_norm_epsilon);
  layer.dt_min = file.positive_or("time_step_min", layer.dt_min);
  layer.dt_max = file.positive_or("time_step_max", layer.dt_max);
  layer.dt_floor = file.positive_or("time_step_floor", layer.dt_floor);
  std::tie(layer.dt_low, layer.dt_high) = file.pair_or(limit_key, no_limits);
}

void Mamba2Mixer::write(const LayerConfig& layer, Json& json) const {
  json.set("hidden_size", layer.d_model);
  json.set("state_size", layer.d_state);
  json.set("conv_kernel", layer.d_conv);
  json.set("expand", layer.expand);
  json.set("head_dim", layer.head_dim);
  json.set("num_heads", layer.heads());
  json.set("n_groups", layer.groups);
  json.set("time_step_min", number(layer.dt_min));
  json.set("time_step_max", number(layer.dt_max));
  json.set("time_step_floor", number(layer.dt_floor));
  // Not where there is none: strict JSON has no word for infinity.
  const std::string source = "source_json";
  const std::pair<float, float> limits{layer.dt_low, layer.dt_high};
  if (Fields(json, source).pair_or(limit_key, no_limits) != limits) {
    json.set(limit_key, Json::Array{number(layer.dt_low), number(layer.dt_high)});
  }
  json.set("use_bias", layer.use_bias);
  json.set("use_conv_bias", layer.use_conv_bias);
  if (!json.contains("chunk_size")) json.set("chunk_size", 256);
}

std::vector<const char*> Mamba2Mixer::own_keys() const {
  return {"d_inner", "rmsnorm", "norm_before_gate", "gated_norm_epsilon", "initial_D"};
}

void Mamba2Mixer::read_own_options(const Fields& own, LayerConfig& layer) const {
  layer.d_inner = own.size_or("d_inner", layer.d_inner);
  layer.rmsnorm = own.flag_or("rmsnorm", layer.rmsnorm);
  layer.norm_before_gate = own.flag_or("norm_before_gate", layer.norm_before_gate);
  layer.gated_norm_epsilon = own.positive_or("gated_norm_epsilon", layer.gated_norm_epsilon);
  layer.initial_D = own.number_or("initial_D", layer.initial_D);
}

void Mamba2Mixer::write_own_options(const LanguageModelConfig& config, Json& own) const {
  const LayerConfig& layer = config.layer;
  if (layer.d_inner != layer.expand * layer.d_model) own.set("d_inner", layer.d_inner);
  if (!layer.rmsnorm) own.set("rmsnorm", false);
  if (layer.norm_before_gate) own.set("norm_before_gate", true);
  if (layer.gated_norm_epsilon != config.norm_epsilon) {
    own.set("gated_norm_epsilon", number(layer.gated_norm_epsilon));
  }
  if (layer.initial_D != LayerConfig().initial_D) own.set("initial_D", number(layer.initial_D));
}

bool Mamba2Mixer::owns(const std::function<bool(const char*)>& has) const {
  return has("dt_bias") && !has("x_proj.weight");
}

}  // namespace mamba
