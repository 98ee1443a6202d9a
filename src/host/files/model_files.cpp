// LanguageModel::load and save: folders as published.
#include <filesystem>
#include <functional>
#include <set>
#include <system_error>

#include <mamba/check.hpp>
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "host/core/json.hpp"
#include "host/files/folder.hpp"
#include "host/files/model_folder.hpp"
#include "host/model/config/config_files.hpp"
#include "host/model/fingerprint.hpp"
#include "host/model/mixers.hpp"

namespace mamba {

namespace fs = std::filesystem;

namespace {

constexpr const char* where = "LanguageModel::load";
constexpr const char* head_name = "lm_head.weight";
constexpr const char* first_layer = "backbone.layers.0.mixer.";

// The ids that end a text by generation_config.json, if it says any.
std::optional<std::vector<std::int32_t>> generation_end(const std::string& folder) {
  const std::string path = (fs::path(folder) / "generation_config.json").string();
  const std::optional<std::string> text = text_if_there(path);
  return text ? parse_generation_config(*text, path) : std::nullopt;
}

// A head that is not the embedding is never passed over: what was not said follows from it, and
// what was said and is not so is an error.
void resolve_head(LanguageModelConfig& config, const Checkpoint& checkpoint, const char* key,
                  bool said) {
  const Checkpoint::Found head = checkpoint.find(head_name);
  if (!head || !config.tie_embeddings) return;
  if (same_values(checkpoint.get("backbone.embeddings.weight"), head)) return;
  if (said) {
    throw FormatError(where, head.entry->name,
                      std::string("the embedding's values, as config.json ties them (the file's "
                                  "own are read with \"") +
                          key + "\": false)",
                      "others");
  }
  config.tie_embeddings = false;
}

using Has = std::function<bool(const char*)>;

// A config of mamba_ssm need not say which architecture its layers are of: the tensors do. One that
// says another is an error.
void resolve_mixer(LanguageModelConfig& config, Json& json, const Has& has,
                   const std::string& config_path) {
  for (const HostMixer* mixer : mixers()) {
    if (mixer->kind() == config.layer.mixer || !mixer->owns(has)) continue;
    const Json* options = json.find("ssm_cfg");
    if (json.contains("model_type") || (options != nullptr && options->contains("layer"))) {
      throw FormatError(where, config_path,
                        std::string("layers of ") + mixer->name() + ", as the tensors are",
                        std::string("of ") + name_of(config.layer.mixer));
    }
    Json said = options != nullptr ? *options : Json::object();
    said.set("layer", mixer->name());
    json.set("ssm_cfg", std::move(said));
    config = parse_config(json.dump(2), config_path);
    return;
  }
}

// What a config may leave to the tensors: of which architecture it is, whether there are biases and
// a head, and how the vocabulary is padded.
void complete(LanguageModelConfig& config, const Checkpoint& checkpoint, const std::string& folder,
              const std::string& config_path) {
  const std::string config_name = "config.json";
  Json json = parse_json(config.source_json, where, config_name);
  const Has has = [&](const char* name) {
    return static_cast<bool>(checkpoint.find(std::string(first_layer) + name));
  };
  resolve_mixer(config, json, has, config_path);
  host_mixer(config.layer).complete(Fields(json, config_name), has, config.layer);
  const Checkpoint::Found embedding = checkpoint.get("backbone.embeddings.weight");
  if (!embedding.entry->shape.empty()) {
    config.vocab_rows = std::max(config.vocab_size, embedding.entry->shape.front());
  }
  const char* tie = json.contains("model_type") ? "tie_word_embeddings" : "tie_embeddings";
  resolve_head(config, checkpoint, tie, json.contains(tie));
  const Json* own = json.find("mamba_cpp");
  if (own == nullptr || !own->contains("eos_token_id")) {
    if (auto ids = generation_end(folder)) config.eos_token_ids = std::move(*ids);
  }
}

// The names that parameters of some Mamba of as many layers have.
std::set<std::string> parameter_names(LanguageModelConfig config) {
  config.tie_embeddings = false;
  LanguageModelWeights none;
  none.stack.layers.resize(static_cast<std::size_t>(config.n_layer));
  none.stack.norms.resize(static_cast<std::size_t>(config.n_layer));
  std::set<std::string> names;
  LanguageModelWeights::each(
      none, config, DType::f32,
      [&](const std::string& name, const Tensor&, const Shape&, DType) { names.insert(name); });
  const detail::LayerWeightList layer = detail::layer_weights(config.layer, DType::f32);
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    for (const detail::LayerWeight& one : layer) {
      names.insert("backbone.layers." + std::to_string(i) + ".mixer." + one.name);
    }
  }
  return names;
}

DType stored_dtype(const LayerConfig& config, const Checkpoint& checkpoint) {
  const detail::LayerWeight first = detail::layer_weights(config, DType::f32).front();
  const auto found = checkpoint.get(std::string(first_layer) + first.name);
  const std::optional<DType> dtype = tensor_dtype(*found.entry);
  return dtype && *dtype != DType::i32 ? *dtype : DType::f32;
}

}  // namespace

LanguageModel LanguageModel::load(const std::string& folder, std::optional<DType> dtype,
                                  Device device, const LoadProgress& on_progress) {
  if (dtype) check::storage(where, "dtype", *dtype);
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw Error(where, folder, "a folder", "none");
  const std::string config_path = (fs::path(folder) / "config.json").string();
  // Another process may save meanwhile: config and weights are those of one moment where the config
  // is the same before and after the weights were opened. Two saves in between can put the same
  // config back; so weights that say that they were saved with another one are opened again, and
  // taken once it is certain that the config has been changed by hand since.
  std::string text = first_config(folder);
  LanguageModelConfig config = parse_config(text, config_path);
  std::optional<Checkpoint> opened(folder);
  constexpr int certain = 4;
  for (int same = 0;; opened.emplace(folder)) {
    if (std::string again = config_of(folder, *opened); again != text) {
      config = parse_config(text = std::move(again), config_path);
      same = 0;
      continue;
    }
    const std::string mark = opened->config_mark();
    if (mark.empty() || mark == config_mark(text) || ++same == certain) break;
  }
  const Checkpoint& checkpoint = *opened;
  complete(config, checkpoint, folder, config_path);
  config = config.resolved();
  const DType type = dtype ? *dtype : stored_dtype(config.layer, checkpoint);

  LanguageModelWeights weights;
  weights.stack.layers.resize(static_cast<std::size_t>(config.n_layer));
  weights.stack.norms.resize(static_cast<std::size_t>(config.n_layer));
  std::int64_t bytes = 0, read = 0;
  LanguageModelWeights::each(weights, config, type,
                             [&](const std::string& name, const Tensor&, const Shape&, DType) {
                               bytes += checkpoint.get(name).entry->bytes;
                             });
  if (on_progress) on_progress(read, bytes);
  std::set<const SafetensorsEntry*> used;
  std::map<std::string, std::string> file_dtypes;
  Fingerprint fingerprint(config);
  LanguageModelWeights::each(
      weights, config, type,
      [&](const std::string& name, Tensor& tensor, const Shape& shape, DType tensor_type) {
        const auto [file, entry] = checkpoint.get(name);
        tensor = file->read(*entry, shape, tensor_type);
        if (tensor_dtype(*entry) == tensor_type) {
          fingerprint.add(name, entry->dtype, tensor.view().data(), tensor.bytes());
        } else {
          const std::vector<unsigned char> stored = file->bytes(*entry);
          fingerprint.add(name, entry->dtype, stored.data(), entry->bytes);
        }
        if (device.is_cuda()) tensor = tensor.to(device);
        used.insert(entry);
        file_dtypes[name] = entry->dtype;
        read += entry->bytes;
        if (on_progress) on_progress(read, bytes);
      });
  if (config.tie_embeddings) used.insert(checkpoint.find(head_name).entry);  // a copy
  checkpoint.check_all_used(used, parameter_names(config));

  LanguageModel model(config, std::move(weights));
  model.loaded_fingerprint_ = fingerprint.text();
  model.file_dtypes_ = std::move(file_dtypes);
  return model;
}

void LanguageModel::save(const std::string& folder) const {
  make_folder("LanguageModel::save", folder);
  std::vector<SafetensorsItem> items;
  const detail::LayerWeightList layer = detail::layer_weights(config_.layer, dtype());
  each_weight([&](const std::string& name, const Tensor& tensor) {
    SafetensorsItem item{name, tensor};
    const auto dtype = file_dtypes_.find(name);
    if (dtype != file_dtypes_.end()) item.dtype = dtype->second;
    const detail::LayerWeight* weight = weight_named(name, layer);
    if (weight != nullptr && weight->published != weight->shape) {
      for (int i = 0; i < weight->published.rank(); ++i) item.shape.push_back(weight->published[i]);
    }
    items.push_back(std::move(item));
  });
  const auto end = generation_end(folder);
  const bool other_end = end && *end != config_.eos_token_ids;
  save_model(folder, items, other_end ? to_json_with_own_end(config_) : to_json(config_));
}

}  // namespace mamba
