#include <mamba/config.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/model/config_checks.hpp"
#include "host/model/config_files.hpp"

namespace mamba {
namespace {

// Typed access to the fields of one JSON object. What a field is not is a FormatError naming it.
class Fields {
 public:
  Fields(const Json& object, const std::string& path, std::string prefix = "")
      : object_(object), path_(path), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key); }

  std::int64_t size(const char* key, std::int64_t most = limits::size) const {
    if (!has(key)) refuse(key, range_text(most), "nothing");
    const Json& value = at(key);
    // 768.0 is a whole number that some writers produce; 768.5 is a mistake.
    const double number = value.is_number() ? value.number() : 0;
    if (!(number >= 1 && number <= static_cast<double>(most) && std::trunc(number) == number)) {
      refuse(key, range_text(most), describe(value));
    }
    return static_cast<std::int64_t>(number);
  }

  std::int64_t size_or(const char* key, std::int64_t fallback,
                       std::int64_t most = limits::size) const {
    return has(key) ? size(key, most) : fallback;
  }

  // 0, "by the published rule", if it is missing or "auto".
  std::int64_t rank(const char* key) const {
    return has(key) && at(key) == "auto" ? 0 : size_or(key, 0);
  }

  float positive_or(const char* key, float fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    const float number = value.is_number() ? nearest(value) : 0.0f;
    if (!(number >= limits::smallest && number <= limits::largest)) {
      refuse(key, "a positive number", describe(value));
    }
    return number;
  }

  float number_or(const char* key, float fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    const float number = value.is_number() ? nearest(value) : limits::largest * 2;
    if (!(std::abs(number) <= limits::largest)) refuse(key, "a number", describe(value));
    return number;
  }

  bool flag_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    if (!value.is_boolean()) refuse(key, "true or false", describe(value));
    return value.boolean();
  }

  // One id, a list of them, or null for none.
  std::vector<std::int32_t> ids_or(const char* key, std::vector<std::int32_t> fallback) const {
    if (!has(key)) return fallback;
    if (at(key).is_null()) return {};
    std::vector<std::int32_t> result;
    const auto add = [&](const Json& id) {
      if (!id.is_count() || id.count() > std::uint64_t{limits::size}) {
        refuse(key, fmt::format("ids of 0 to {}", limits::size), describe(id));
      }
      result.push_back(static_cast<std::int32_t>(id.count()));
    };
    if (!at(key).is_array()) add(at(key));
    if (at(key).is_array()) {
      for (const Json& id : at(key).elements()) add(id);
    }
    return result;
  }

  // The fields of an object within; none if it is missing.
  Fields within(const char* key) const {
    static const Json nothing = Json::object();
    if (!has(key)) return {nothing, path_, prefix_ + key + "."};
    if (!at(key).is_object()) refuse(key, "an object", describe(at(key)));
    return {at(key), path_, prefix_ + key + "."};
  }

  // An option of which only some values can be done.
  void only(const char* key, const std::vector<Json>& possible, const char* expected) const {
    if (has(key) && std::find(possible.begin(), possible.end(), at(key)) == possible.end()) {
      refuse(key, expected, describe(at(key)));
    }
  }

  void no_others(const std::set<std::string>& known, const char* expected) const {
    for (const auto& [key, value] : object_.members()) {
      if (known.count(key) == 0) refuse(key, expected, describe(value));
    }
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(path_, prefix_ + key, expected, got);
  }

 private:
  const Json& at(const char* key) const { return *object_.find(key); }
  // What is beyond a float is infinite, as all limits expect.
  static float nearest(const Json& value) { return static_cast<float>(value.number()); }
  static std::string range_text(std::int64_t most) { return fmt::format("1 to {}", most); }

  const Json& object_;
  const std::string& path_;
  std::string prefix_;
};

// The end of text of a file that names none: what transformers takes, and its conversion of a file
// of mamba_ssm, whose models were trained on texts that end so.
const std::vector<std::int32_t> usual_end{0};

// What is missing has the value that transformers gives it, except that its default of biases is
// true while every published checkpoint has none.
ModelConfig read_hugging_face(const Fields& file, bool falcon) {
  ModelConfig config;
  LayerConfig& layer = config.layer;
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
  layer.norm_dt_b_c = falcon;
  if (falcon) {
    layer.norm_dt_b_c_epsilon = file.positive_or("mixer_rms_eps", layer.norm_dt_b_c_epsilon);
  }
  config.n_layer = file.size("num_hidden_layers", limits::n_layer);
  config.vocab_rows = file.size("vocab_size");
  config.vocab_size = config.vocab_rows;
  config.tie_embeddings = file.flag_or("tie_word_embeddings", true);
  config.norm_epsilon = file.positive_or("layer_norm_epsilon", config.norm_epsilon);
  config.eos_token_ids = file.ids_or("eos_token_id", usual_end);
  return config;
}

ModelConfig read_mamba_ssm(const Fields& file) {
  ModelConfig config;
  LayerConfig& layer = config.layer;
  layer.d_model = file.size("d_model");
  const Fields options = file.within("ssm_cfg");
  options.only("layer", {"Mamba1"}, "Mamba1");
  options.no_others({"layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max",
                     "dt_init", "dt_scale", "dt_init_floor", "conv_bias", "bias", "use_fast_path"},
                    "an option of Mamba1");
  layer.d_state = options.size_or("d_state", layer.d_state, limits::d_state);
  layer.d_conv = options.size_or("d_conv", layer.d_conv);
  layer.expand = options.size_or("expand", layer.expand);
  layer.dt_rank = options.rank("dt_rank");
  layer.use_bias = options.flag_or("bias", false);
  layer.use_conv_bias = options.flag_or("conv_bias", true);
  layer.dt_min = options.positive_or("dt_min", layer.dt_min);
  layer.dt_max = options.positive_or("dt_max", layer.dt_max);
  layer.dt_floor = options.positive_or("dt_init_floor", layer.dt_floor);
  layer.dt_scale = options.positive_or("dt_scale", layer.dt_scale);
  config.n_layer = file.size("n_layer", limits::n_layer);
  config.vocab_size = file.size("vocab_size");
  const std::int64_t multiple = file.size_or("pad_vocab_size_multiple", 8);
  config.vocab_rows = (config.vocab_size + multiple - 1) / multiple * multiple;
  config.tie_embeddings = file.flag_or("tie_embeddings", true);
  config.eos_token_ids = file.ids_or("eos_token_id", usual_end);
  file.only("attn_layer_idx", {Json::array()}, "an empty list (this library has no attention)");
  file.only("d_intermediate", {0}, "0 (this library has no MLP layers)");
  return config;
}

// "mamba_cpp" holds what this library alone knows: how many of the embedding's rows are real ids,
// the options of a layer that no published model has, and ids that end a text in spite of a
// generation_config.json.
void read_own_options(const Fields& file, ModelConfig& config) {
  const Fields own = file.within("mamba_cpp");
  own.no_others({"vocab_size", "eos_token_id", "gated_norm", "gated_norm_epsilon", "initial_D"},
                "an option of this version");
  config.vocab_size = own.size_or("vocab_size", config.vocab_size, config.vocab_rows);
  config.eos_token_ids = own.ids_or("eos_token_id", std::move(config.eos_token_ids));
  LayerConfig& layer = config.layer;
  layer.gated_norm = own.flag_or("gated_norm", false);
  layer.gated_norm_epsilon = own.positive_or("gated_norm_epsilon", layer.gated_norm_epsilon);
  layer.initial_D = own.number_or("initial_D", layer.initial_D);
}

Json parse_object(const std::string& json_text, const std::string& where) {
  Json json = parse_json(json_text, where);
  if (!json.is_object()) throw FormatError(where, "JSON", "an object", describe(json));
  return json;
}

}  // namespace

std::optional<std::vector<std::int32_t>> parse_generation_config(const std::string& json_text,
                                                                 const std::string& where) {
  constexpr const char* key = "eos_token_id";
  const Json json = parse_object(json_text, where);
  const Json* ids = json.find(key);
  if (ids == nullptr || ids->is_null()) return std::nullopt;
  return Fields(json, where).ids_or(key, {});
}

ModelConfig parse_config(const std::string& json_text, const std::string& where) {
  const Json json = parse_object(json_text, where);
  const Fields file(json, where);
  const bool original = !file.has("model_type") && (file.has("d_model") || file.has("ssm_cfg"));
  if (!original && !file.has("model_type")) {
    file.refuse("model_type", "mamba or falcon_mamba", "nothing");
  }
  file.only("model_type", {"mamba", "falcon_mamba"}, "mamba or falcon_mamba");
  file.only("hidden_act", {"silu", "swish"}, "silu");
  file.flag_or("residual_in_fp32", true);
  file.flag_or("fused_add_norm", true);
  if (!file.flag_or("rms_norm", true)) file.refuse("rms_norm", "true", "false");
  ModelConfig config = original
                           ? read_mamba_ssm(file)
                           : read_hugging_face(file, *json.find("model_type") == "falcon_mamba");
  read_own_options(file, config);
  config.source_json = json_text;
  return resolve(
      config, [&](const std::string& field, const std::string& expected, const std::string& got) {
        throw FormatError(where, field, expected, got);
      });
}

}  // namespace mamba
