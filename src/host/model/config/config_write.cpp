#include <mamba/config.hpp>

#include <fmt/format.h>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/model/config/config_fields.hpp"
#include "host/model/config/config_files.hpp"
#include "host/model/mixers.hpp"

namespace mamba {
namespace {

void set_if_missing(Json& json, const char* key, Json value) {
  if (!json.contains(key)) json.set(key, std::move(value));
}

Json source_of(const LanguageModelConfig& config) {
  if (config.source_json.empty()) return Json::object();
  Json json;
  try {
    json = parse_json(config.source_json, "to_json");
  } catch (const FormatError& error) {
    throw ArgumentError("to_json", "source_json", "JSON of a config", error.what());
  }
  if (!json.is_object()) {
    throw ArgumentError("to_json", "source_json", "an object", describe(json));
  }
  return json;
}

// A file of mamba_ssm becomes one of Hugging Face: what is said in other words goes, the rest
// stays.
void translate_mamba_ssm(Json& json) {
  const Json* options = json.find("ssm_cfg");
  const Json* scheme = options != nullptr ? options->find("dt_init") : nullptr;
  if (scheme != nullptr) json.set("time_step_init_scheme", Json(*scheme));
  for (const char* key : {"d_model", "n_layer", "ssm_cfg", "d_intermediate", "attn_layer_idx",
                          "attn_cfg", "tie_embeddings"}) {
    json.erase(key);
  }
}

Json end_of_text(const LanguageModelConfig& config) {
  const auto& ids = config.eos_token_ids;
  if (ids.size() == 1) return ids[0];
  return ids.empty() ? Json() : Json(Json::Array(ids.begin(), ids.end()));
}

// transformers sizes the embedding by vocab_size, so that must be its rows. How many of them are
// real ids has no key there.
void write_vocabulary(const LanguageModelConfig& config, Json& json) {
  json.set("vocab_size", config.vocab_rows);
  // null is written out, because a missing key means 0 to transformers.
  json.set("eos_token_id", end_of_text(config));
}

// "mamba_cpp", only where something differs from every published model.
void write_own_options(const LanguageModelConfig& config, bool with_own_end, Json& json) {
  Json own = Json::object();
  if (config.vocab_size != config.vocab_rows) own.set("vocab_size", config.vocab_size);
  if (with_own_end) own.set("eos_token_id", end_of_text(config));
  host_mixer(config.layer).write_own_options(config, own);
  if (own.members().empty()) {
    json.erase("mamba_cpp");
  } else {
    json.set("mamba_cpp", std::move(own));
  }
}

std::string text_of(const LanguageModelConfig& given, bool with_own_end) {
  const LanguageModelConfig config = given.resolved();
  Json json = source_of(config);
  const HostMixer& mixer = host_mixer(config.layer);
  const PublishedAs published = mixer.published_as(config.layer);
  if (!json.contains("model_type")) translate_mamba_ssm(json);
  const Json* told = json.find("model_type");
  if (!json.contains("architectures") || told == nullptr || *told != published.model_type) {
    json.set("architectures", Json::Array{published.architecture});
  }
  json.set("model_type", published.model_type);
  mixer.write(config.layer, json);
  json.set("num_hidden_layers", config.n_layer);
  json.set("layer_norm_epsilon", number(config.norm_epsilon));
  json.set("tie_word_embeddings", config.tie_embeddings);
  write_vocabulary(config, json);
  write_own_options(config, with_own_end, json);
  // Published files carry these older names beside the others.
  if (json.contains("d_model")) json.set("d_model", config.layer.d_model);
  if (json.contains("n_layer")) json.set("n_layer", config.n_layer);
  set_if_missing(json, "hidden_act", "silu");
  set_if_missing(json, "rms_norm", true);
  set_if_missing(json, "residual_in_fp32", true);
  set_if_missing(json, "rescale_prenorm_residual", false);
  set_if_missing(json, "initializer_range", 0.1);
  set_if_missing(json, "use_cache", true);
  return json.dump(2) + "\n";
}

}  // namespace

std::string to_json(const LanguageModelConfig& config) { return text_of(config, false); }

std::string to_json_with_own_end(const LanguageModelConfig& config) {
  return text_of(config, true);
}

}  // namespace mamba
