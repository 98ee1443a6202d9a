#include "host/files/model_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "host/core/elements.hpp"
#include "host/core/hash.hpp"
#include "host/core/json.hpp"
#include "host/files/atomic_file.hpp"
#include "host/files/folder.hpp"
#include "host/files/input_file.hpp"
#include "host/files/safetensors_write.hpp"

namespace mamba {

namespace fs = std::filesystem;

namespace {

constexpr const char* where = "LanguageModel::load";
constexpr const char* weights_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr const char* config_name = "config.json";
constexpr const char* next_config_name = "config.json.new";

std::string in(const std::string& folder, const std::string& name) {
  return (fs::path(folder) / name).string();
}

bool strip_prefix(std::string_view& text, std::string_view prefix) {
  if (text.substr(0, prefix.size()) != prefix) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// Whether there is such a file, or a link of that name. What the system will not say of it, or of
// where the link leads, opening it will.
bool is_there(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

std::string read_text(const std::string& path) { return InputFile(where, path).text(); }

bool has_shards(const std::string& folder) {
  bool found = false;
  each_entry(folder, [&](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    found |= name.find("-of-") != name.npos && entry.path().extension() == ".safetensors";
  });
  return found;
}

// Which shard has which tensor.
std::map<std::string, std::string> read_index(const std::string& path) {
  constexpr const char* expected = "an index with a weight_map of names";
  const Json index = parse_json(read_text(path), path, expected);
  const auto refuse = [&](const std::string& got) {
    throw FormatError(where, path, expected, got);
  };
  const Json* map = index.find("weight_map");
  if (map == nullptr) refuse(describe(index));
  if (!map->is_object()) refuse("a weight_map that is " + describe(*map));
  if (map->members().empty()) refuse("a weight_map of nothing");
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : map->members()) {
    if (!shard.is_text()) refuse(describe(shard) + " for " + in_quotes(tensor));
    shard_of.emplace(tensor, shard.text());
  }
  return shard_of;
}

std::vector<std::int64_t> without_ones(std::vector<std::int64_t> sizes) {
  sizes.erase(std::remove(sizes.begin(), sizes.end(), 1), sizes.end());
  return sizes;
}

void rename_config(const std::string& next, const std::string& config) {
  if (std::rename(next.c_str(), config.c_str()) == 0) return;
  throw Error("LanguageModel::save", config, "a file that can be written",
              std::generic_category().message(errno));
}

// A killed process may have left weights whose config has not got its name yet.
void finish_last_save(const std::string& folder) {
  const std::optional<std::string> next = text_if_there(in(folder, next_config_name));
  if (!next || !is_there(in(folder, weights_name))) return;
  std::string mark;
  try {
    mark = Checkpoint(folder).config_mark();
  } catch (const Error&) {
    return;  // weights that cannot be read have no config
  }
  if (mark != config_mark(*next)) return;
  rename_config(in(folder, next_config_name), in(folder, config_name));
}

}  // namespace

std::string published_name(const std::string& name) {
  std::string_view rest = name;
  strip_prefix(rest, "model.");
  const bool named = strip_prefix(rest, "backbone.");
  if (strip_prefix(rest, "embeddings.") || strip_prefix(rest, "embedding.")) {
    return "backbone.embeddings." + std::string(rest);
  }
  for (const std::string_view part : {"layers.", "norm_f."}) {
    if (rest.substr(0, part.size()) == part) return "backbone." + std::string(rest);
  }
  return !named && rest == "lm_head.weight" ? std::string(rest) : name;
}

// ---- Checkpoint ---------------------------------------------------------------------------------

Checkpoint::Checkpoint(const std::string& folder) {
  const auto refuse = [&](const char* expected, const char* got) {
    throw FormatError(where, folder, expected, got);
  };
  if (is_there(in(folder, weights_name))) {
    add(in(folder, weights_name));
  } else if (is_there(in(folder, index_name))) {
    add_shards(folder, in(folder, index_name));
  } else if (has_shards(folder)) {
    refuse("model.safetensors.index.json beside its shards", "the shards without it");
  } else if (is_there(in(folder, "pytorch_model.bin")) ||
             is_there(in(folder, "pytorch_model.bin.index.json"))) {
    refuse("model.safetensors",
           "only pytorch_model.bin; scripts/bin_to_safetensors.py converts it");
  } else {
    refuse("model.safetensors or its index", "neither");
  }
}

Checkpoint::Found Checkpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? Found{} : found->second;
}

Checkpoint::Found Checkpoint::get(const std::string& name) const {
  const Found found = find(name);
  if (!found) throw FormatError(where, files_.front().path(), name, "no tensor of that name");
  return found;
}

void Checkpoint::check_all_used(const std::set<const SafetensorsEntry*>& used,
                                const std::set<std::string>& parameters) const {
  for (const auto& [name, found] : tensors_) {
    if (used.count(found.entry) != 0) continue;
    if (!elements::convertible(found.entry->dtype, "F32") && parameters.count(name) == 0) continue;
    throw FormatError(where, found.entry->name, "only tensors that the config has",
                      "a surplus one");
  }
}

std::string Checkpoint::config_mark() const {
  const auto& metadata = files_.front().metadata();
  const auto found = metadata.find(config_mark_key);
  return found == metadata.end() ? "" : found->second;
}

void Checkpoint::add(const std::string& path) {
  const SafetensorsFile& file = *files_.emplace(files_.end(), path);
  for (const SafetensorsEntry& entry : file.entries()) {
    const auto [place, is_new] = tensors_.emplace(published_name(entry.name), Found{&file, &entry});
    if (is_new) continue;
    const std::string& other = place->second.entry->name;
    if (other == entry.name) {
      throw FormatError(where, path, "every tensor in one shard", entry.name + " twice");
    }
    throw FormatError(where, path, "one name for every tensor", other + " and " + entry.name);
  }
}

void Checkpoint::add_shards(const std::string& folder, const std::string& index) {
  const std::map<std::string, std::string> shard_of = read_index(index);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : shard_of) {
    if (fs::path(shard).filename() != fs::path(shard) || shard == "..") {
      throw FormatError(where, index, "shards in the same folder", shard);
    }
    names.insert(shard);
  }
  for (const std::string& name : names) {
    if (!is_there(in(folder, name))) {
      throw FormatError(where, index, "every shard that it names beside it", "no " + name);
    }
    add(in(folder, name));
  }
  for (const auto& [tensor, shard] : shard_of) {
    const Found found = find(published_name(tensor));
    if (!found || found.entry->name != tensor ||
        fs::path(found.file->path()).filename() != fs::path(shard)) {
      throw FormatError(where, index, fmt::format("{} in {}", tensor, shard),
                        "no such tensor there");
    }
  }
}

bool same_values(const Checkpoint::Found& a, const Checkpoint::Found& b) {
  if (without_ones(a.entry->shape) != without_ones(b.entry->shape)) return false;
  if (a.entry->dtype == b.entry->dtype) return a.file->bytes(*a.entry) == b.file->bytes(*b.entry);
  for (const auto& one : {a, b}) {
    if (!elements::convertible(one.entry->dtype, "F32") || one.entry->shape.size() != 2)
      return false;
  }
  const Shape shape{a.entry->shape[0], a.entry->shape[1]};
  const Tensor left = a.file->read(*a.entry, shape, DType::f32);
  const Tensor right = b.file->read(*b.entry, shape, DType::f32);
  return std::equal(left.data<float>(), left.data<float>() + shape.count(), right.data<float>());
}

// ---- config and weights -------------------------------------------------------------------------

std::string config_mark(const std::string& config_text) {
  Hash hash;
  hash.add(config_text);
  return hash.text();
}

// A file that goes away before it is opened was not there.
std::optional<std::string> text_if_there(const std::string& path) {
  if (!is_there(path)) return std::nullopt;
  try {
    return read_text(path);
  } catch (const Error&) {
    if (!is_there(path)) return std::nullopt;
    throw;
  }
}

std::string first_config(const std::string& folder) {
  for (const char* name : {config_name, next_config_name}) {
    if (auto text = text_if_there(in(folder, name))) return std::move(*text);
  }
  throw FormatError(where, folder, config_name, "none");
}

std::string config_of(const std::string& folder, const Checkpoint& checkpoint) {
  if (auto next = text_if_there(in(folder, next_config_name))) {
    if (config_mark(*next) == checkpoint.config_mark()) return std::move(*next);
  }
  if (auto text = text_if_there(in(folder, config_name))) return std::move(*text);
  throw FormatError(where, folder, config_name, "none");
}

void save_model(const std::string& folder, const std::vector<SafetensorsItem>& items,
                const std::string& config_text) {
  const std::string config = in(folder, config_name);
  const std::string next = in(folder, next_config_name);
  finish_last_save(folder);
  AtomicFile weights("save_safetensors", in(folder, weights_name));
  write_safetensors(weights, items,
                    {{"format", "pt"}, {config_mark_key, config_mark(config_text)}});
  const std::optional<std::string> before = text_if_there(config);
  if (before == config_text) {
    weights.commit();
    std::remove(next.c_str());  // of a save that was killed before its weights were there
    return;
  }
  save_text(next, config_text);
  // From here on nothing takes memory, so that none can be lacking halfway.
  struct stat status;
  if (stat(config.c_str(), &status) == 0) chmod(next.c_str(), status.st_mode & 0777);
  weights.commit();
  rename_config(next, config);
}

}  // namespace mamba
