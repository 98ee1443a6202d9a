// LanguageModel::load and save: folders as published.
#include <fmt/format.h>

#include <filesystem>
#include <list>
#include <set>
#include <system_error>

#include <mamba/check.hpp>
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "host/fingerprint.hpp"
#include "host/folder.hpp"
#include "host/input_file.hpp"
#include "host/json.hpp"
#include "host/safetensors_write.hpp"

namespace mamba {

namespace fs = std::filesystem;

namespace {

constexpr const char* where = "LanguageModel::load";

std::string read_text(const fs::path& path) { return InputFile(where, path.string()).text(); }

// Whether there is such a file. What the system will not say of it, opening it will.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The safetensors file or files of a folder, seen as one.
class Checkpoint {
 public:
  explicit Checkpoint(const fs::path& folder) {
    const fs::path single = folder / "model.safetensors";
    const fs::path index = folder / "model.safetensors.index.json";
    if (is_there(single)) {
      add(single);
    } else if (is_there(index)) {
      add_shards(folder, index);
    } else if (is_there(folder / "pytorch_model.bin") ||
               is_there(folder / "pytorch_model.bin.index.json")) {
      throw FormatError(where, folder.string(), "model.safetensors",
                        "only pytorch_model.bin; scripts/bin_to_safetensors.py converts it");
    } else {
      throw FormatError(where, folder.string(), "model.safetensors or its index", "neither");
    }
  }

  struct Found {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
    explicit operator bool() const { return entry != nullptr; }
  };

  // mamba_ssm calls the embedding differently.
  Found find(const std::string& name) const {
    const std::string second =
        name == "backbone.embeddings.weight" ? "backbone.embedding.weight" : name;
    for (const std::string& one : {name, second}) {
      const auto found = tensors_.find(one);
      if (found != tensors_.end()) return found->second;
    }
    return {};
  }

  Found get(const std::string& name) const {
    const Found found = find(name);
    if (!found) throw FormatError(where, files_.front().path(), name, "no tensor of that name");
    return found;
  }

  // Every tensor must have been used: an ignored bias would give silently wrong logits.
  void check_all_used(const std::set<const SafetensorsEntry*>& used) const {
    for (const auto& [name, found] : tensors_) {
      if (used.count(found.entry) == 0) {
        throw FormatError(where, name, "only tensors that the config has", "a surplus one");
      }
    }
  }

 private:
  void add(const fs::path& path) { index(*files_.emplace(files_.end(), path.string())); }

  void index(const SafetensorsFile& file) {
    for (const SafetensorsEntry& entry : file.entries()) {
      if (!tensors_.emplace(entry.name, Found{&file, &entry}).second) {
        throw FormatError(where, file.path(), "every tensor in one shard", entry.name + " twice");
      }
    }
  }

  void add_shards(const fs::path& folder, const fs::path& index) {
    const std::map<std::string, std::string> shard_of = read_index(index);
    std::set<std::string> names;
    for (const auto& [tensor, shard] : shard_of) {
      if (fs::path(shard).filename() != fs::path(shard) || shard == "..") {
        throw FormatError(where, index.string(), "shards in the same folder", shard);
      }
      names.insert(shard);
    }
    for (const std::string& name : names) add(folder / name);
    for (const auto& [tensor, shard] : shard_of) {
      const auto found = tensors_.find(tensor);
      if (found == tensors_.end() ||
          fs::path(found->second.file->path()).filename() != fs::path(shard)) {
        throw FormatError(where, index.string(), fmt::format("{} in {}", tensor, shard),
                          "no such tensor there");
      }
    }
  }

  // Which shard has which tensor.
  static std::map<std::string, std::string> read_index(const fs::path& path) {
    constexpr const char* expected = "an index with a weight_map of names";
    const Json index = parse_json(read_text(path), path.string(), expected);
    const auto refuse = [&](const std::string& got) {
      throw FormatError(where, path.string(), expected, got);
    };
    const Json* map = index.find("weight_map");
    if (map == nullptr) refuse(describe(index));
    if (!map->is_object()) refuse("a weight_map that is " + describe(*map));
    std::map<std::string, std::string> shard_of;
    for (const auto& [tensor, shard] : map->members()) {
      if (!shard.is_text()) refuse(describe(shard) + " for " + in_quotes(tensor));
      shard_of.emplace(tensor, shard.text());
    }
    return shard_of;
  }

  std::list<SafetensorsFile> files_;  // entries are pointed to: they must not move
  std::map<std::string, Found> tensors_;
};

// What a config may leave to the tensors: whether there are biases, and how the vocabulary is
// padded.
void settle(ModelConfig& config, const Checkpoint& checkpoint) {
  const Json json = parse_json(config.source_json, where, "config.json");
  const std::string mixer = "backbone.layers.0.mixer.";
  if (!json.contains("use_bias") && !json.contains("ssm_cfg")) {
    config.layer.use_bias = static_cast<bool>(checkpoint.find(mixer + "in_proj.bias"));
  }
  if (!json.contains("use_conv_bias") && !json.contains("ssm_cfg")) {
    config.layer.use_conv_bias = static_cast<bool>(checkpoint.find(mixer + "conv1d.bias"));
  }
  const Checkpoint::Found embedding = checkpoint.get("backbone.embeddings.weight");
  if (!embedding.entry->shape.empty()) {
    config.vocab_rows = std::max(config.vocab_size, embedding.entry->shape.front());
  }
}

DType stored_dtype(const Checkpoint& checkpoint) {
  const auto found = checkpoint.get("backbone.layers.0.mixer.in_proj.weight");
  const std::optional<DType> dtype = tensor_dtype(*found.entry);
  return dtype && *dtype != DType::i32 ? *dtype : DType::f32;
}

}  // namespace

LanguageModel LanguageModel::load(const std::string& folder, std::optional<DType> dtype,
                                  Device device) {
  if (dtype) check::storage(where, "dtype", *dtype);
  const fs::path config_path = fs::path(folder) / "config.json";
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw Error(where, folder, "a folder", "none");
  if (!is_there(config_path)) throw FormatError(where, folder, "config.json", "none");
  ModelConfig config = parse_config(read_text(config_path), config_path.string());
  const Checkpoint checkpoint(folder);
  settle(config, checkpoint);
  config = config.resolved();
  const DType type = dtype ? *dtype : stored_dtype(checkpoint);

  ModelWeights weights;
  weights.stack.layers.resize(static_cast<std::size_t>(config.n_layer));
  weights.stack.norms.resize(static_cast<std::size_t>(config.n_layer));
  std::set<const SafetensorsEntry*> used;
  std::map<std::string, std::string> file_dtypes;
  Fingerprint fingerprint(config);
  ModelWeights::each(
      weights, config, type,
      [&](const std::string& name, Tensor& tensor, const Shape& shape, DType tensor_type) {
        const auto [file, entry] = checkpoint.get(name);
        tensor = file->read(*entry, shape, tensor_type);
        if (tensor_dtype(*entry) == tensor_type) {
          fingerprint.add(name, entry->dtype, tensor.view().data(), tensor.bytes());
        } else {
          const std::vector<unsigned char> bytes = file->bytes(*entry);
          fingerprint.add(name, entry->dtype, bytes.data(), entry->bytes);
        }
        if (device.is_cuda()) tensor = tensor.to(device);
        used.insert(entry);
        file_dtypes[name] = entry->dtype;
      });
  if (config.tie_embeddings) used.insert(checkpoint.find("lm_head.weight").entry);  // a copy
  checkpoint.check_all_used(used);

  LanguageModel model(config, std::move(weights));
  model.loaded_fingerprint_ = fingerprint.text();
  model.file_dtypes_ = std::move(file_dtypes);
  return model;
}

void LanguageModel::save(const std::string& folder) const {
  make_folder("LanguageModel::save", folder);
  std::vector<SafetensorsItem> items;
  each_weight([&](const std::string& name, const Tensor& tensor) {
    SafetensorsItem item{name, tensor};
    const auto dtype = file_dtypes_.find(name);
    if (dtype != file_dtypes_.end()) item.dtype = dtype->second;
    if (tensor.rank() == 2 && name.find("conv1d.weight") != std::string::npos) {
      item.shape = {tensor.dim(0), 1, tensor.dim(1)};  // as published
    }
    items.push_back(std::move(item));
  });
  // Both are whole on the disk before either takes its name: no failure leaves new weights beside
  // an old configuration.
  AtomicFile weights("save_safetensors", (fs::path(folder) / "model.safetensors").string());
  AtomicFile config("save_text", (fs::path(folder) / "config.json").string());
  write_safetensors(weights, items, {{"format", "pt"}});
  const std::string text = to_json(config_);
  config.write(text.data(), text.size());
  AtomicFile::commit_together({&weights, &config});
}

}  // namespace mamba
