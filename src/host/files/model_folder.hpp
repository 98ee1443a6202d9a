// A folder with a model: which files it has, which tensors they hold, and which config belongs to
// them.
#pragma once

#include <list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <mamba/safetensors.hpp>

namespace mamba {

// The name that a tensor of a published model has in LanguageModelWeights: "backbone." is put
// before what a model without head is saved with, "model." of a wrapper is taken away, and
// mamba_ssm's embedding is called as Hugging Face's. Other names come back as they are.
std::string published_name(const std::string& name);

// The safetensors file or files of a folder, seen as one. What is not there, or is not what it
// should be, is a FormatError in the name of LanguageModel::load that says which file or tensor.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder);

  struct Found {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
    explicit operator bool() const { return entry != nullptr; }
  };

  Found find(const std::string& name) const;  // by published_name(); may be nothing
  Found get(const std::string& name) const;   // nothing is a FormatError

  // A tensor that nobody used is an error, because an ignored bias would give silently wrong
  // logits; one that can be no parameter, by its name and its dtype, is passed over.
  void check_all_used(const std::set<const SafetensorsEntry*>& used,
                      const std::set<std::string>& parameters) const;

  // config_mark() of the config.json that the weights were saved with; empty: not said.
  std::string config_mark() const;

 private:
  void add(const std::string& path);
  void add_shards(const std::string& folder, const std::string& index);

  std::list<SafetensorsFile> files_;  // entries are pointed to: they must not move
  std::map<std::string, Found> tensors_;
};

// Whether two tensors hold the same numbers, whatever their dtypes.
bool same_values(const Checkpoint::Found& a, const Checkpoint::Found& b);

// ---- one change for two files -------------------------------------------------------------------
//
// Saving writes config.json.new, then model.safetensors with the mark of that text, then gives
// config.json.new its name. So a config.json.new whose mark is that of the weights belongs to them,
// whenever the process was killed; one of another mark was written before the weights were
// replaced.

// What the metadata of model.safetensors calls the mark.
constexpr const char* config_mark_key = "mamba_cpp.config";
std::string config_mark(const std::string& config_text);

// The text of config.json before the weights are opened, and the one that belongs to weights that
// are open. None is a FormatError.
std::string first_config(const std::string& folder);
std::string config_of(const std::string& folder, const Checkpoint& checkpoint);

// Writes both; `items` are the tensors. After a crash at any moment the folder holds the old model
// or the new one.
void save_model(const std::string& folder, const std::vector<SafetensorsItem>& items,
                const std::string& config_text);

// All of a small text file of the model; nothing if there is none.
std::optional<std::string> text_if_there(const std::string& path);

}  // namespace mamba
