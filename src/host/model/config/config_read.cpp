#include <mamba/config.hpp>

#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/model/config/config_checks.hpp"
#include "host/model/config/config_fields.hpp"
#include "host/model/config/config_files.hpp"
#include "host/model/mixers.hpp"

namespace mamba {
namespace {

// The end of text of a file of mamba_ssm that names none: what transformers' conversion of one
// takes. Its models were trained on texts that end so.
const std::vector<std::int32_t> usual_end{0};

std::string joined(const std::vector<const char*>& names) {
  return fmt::format("{}", fmt::join(names, " or "));
}

// Of the mixers, the one of a file of Hugging Face, and the one of a file of mamba_ssm, where
// Mamba1 need not be said.
const HostMixer& mixer_of_model_type(const Fields& file) {
  std::vector<const char*> known;
  for (const HostMixer* mixer : mixers()) {
    for (const char* type : mixer->model_types()) {
      if (file.is("model_type", type)) return *mixer;
      known.push_back(type);
    }
  }
  const bool attention = file.has("num_attention_heads");
  file.refuse("model_type", joined(known) + (attention ? " (this library has no attention)" : ""));
}

const HostMixer& mixer_of_ssm_cfg(const Fields& options) {
  if (!options.has("layer")) return host_mixer(LayerConfig());
  std::vector<const char*> known;
  for (const HostMixer* mixer : mixers()) {
    if (options.is("layer", mixer->name())) return *mixer;
    known.push_back(mixer->name());
  }
  options.refuse("layer", joined(known));
}

// What is missing has the value that transformers gives it.
LanguageModelConfig read_hugging_face(const Fields& file, const HostMixer& mixer,
                                      const std::string& model_type) {
  LanguageModelConfig config;
  config.layer.mixer = mixer.kind();
  mixer.read_hugging_face(file, model_type, config.layer);
  config.n_layer = file.size("num_hidden_layers", limits::n_layer);
  config.vocab_rows = file.size("vocab_size");
  config.vocab_size = config.vocab_rows;
  config.tie_embeddings = file.flag_or("tie_word_embeddings", true);
  config.norm_epsilon = file.positive_or("layer_norm_epsilon", config.norm_epsilon);
  config.eos_token_ids = file.ids_or("eos_token_id", {mixer.usual_end()});
  return config;
}

LanguageModelConfig read_mamba_ssm(const Fields& file) {
  LanguageModelConfig config;
  config.layer.d_model = file.size("d_model");
  const Fields options = file.within("ssm_cfg");
  const HostMixer& mixer = mixer_of_ssm_cfg(options);
  config.layer.mixer = mixer.kind();
  mixer.read_mamba_ssm(options, config.layer);
  config.n_layer = file.size("n_layer", limits::n_layer);
  config.vocab_size = file.size("vocab_size");
  const std::int64_t multiple = file.size_or("pad_vocab_size_multiple", 8);
  config.vocab_rows = (config.vocab_size + multiple - 1) / multiple * multiple;
  config.tie_embeddings = file.flag_or("tie_embeddings", true);
  config.eos_token_ids = file.ids_or("eos_token_id", usual_end);
  return config;
}

// "mamba_cpp" holds what this library alone knows: how many of the embedding's rows are real ids,
// the options of a layer that no published model has, and ids that end a text in spite of a
// generation_config.json.
void read_own_options(const Fields& file, LanguageModelConfig& config) {
  const Fields own = file.within("mamba_cpp");
  const HostMixer& mixer = host_mixer(config.layer);
  std::set<std::string> known{"vocab_size", "eos_token_id"};
  for (const char* key : mixer.own_keys()) known.insert(key);
  own.no_others(known, "an option of this version");
  config.vocab_size = own.size_or("vocab_size", config.vocab_size, config.vocab_rows);
  config.eos_token_ids = own.ids_or("eos_token_id", std::move(config.eos_token_ids));
  mixer.read_own_options(own, config.layer);
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

LanguageModelConfig parse_config(const std::string& json_text, const std::string& where) {
  const Json json = parse_object(json_text, where);
  const Fields file(json, where);
  const bool original = !file.has("model_type") && (file.has("d_model") || file.has("ssm_cfg"));
  const HostMixer* published = original ? nullptr : &mixer_of_model_type(file);
  file.only("hidden_act", {"silu", "swish"}, "silu");
  file.flag_or("residual_in_fp32", true);
  file.flag_or("fused_add_norm", true);
  if (!file.flag_or("rms_norm", true)) file.refuse("rms_norm", "true", "false");
  file.only("attn_layer_idx", {Json::array()}, "an empty list (this library has no attention)");
  file.only("d_intermediate", {0}, "0 (this library has no MLP layers)");
  LanguageModelConfig config =
      original ? read_mamba_ssm(file)
               : read_hugging_face(file, *published, json.find("model_type")->text());
  read_own_options(file, config);
  config.source_json = json_text;
  return resolve(
      config, [&](const std::string& field, const std::string& expected, const std::string& got) {
        throw FormatError(where, field, expected, got);
      });
}

}  // namespace mamba
