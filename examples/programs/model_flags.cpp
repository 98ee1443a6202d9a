#include "model_flags.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>

#include <mamba/error.hpp>

#include "../shipped_model.hpp"

void ModelFlags::add_folder(CLI::App& app) {
  app.add_option("MODEL", folder,
                 "Folder with config.json and model.safetensors (or its shards); default: the byte "
                 "model that comes with the library");
}

void ModelFlags::add_tokenizer(CLI::App& app) {
  app.add_option("--tokenizer", tokenizer,
                 "tokenizer.json, or its folder (default: the one in MODEL; bytes where there is "
                 "none and the vocabulary is 256)");
}

void ModelFlags::add_placement(CLI::App& app) {
  app.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--dtype", dtype,
                 "Matrices and activations: f32, bf16 or f16 (default: as in the file)")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--threads", threads, "CPU threads (default: one per core)")
      ->check(whole_number<int>(1));
}

std::string ModelFlags::path(const char* command) const {
  const std::string path = folder.empty() ? shipped_model().string() : folder;
  if (path.empty()) {
    throw mamba::ArgumentError(command, "MODEL", "a model folder",
                               "none, and none beside this program");
  }
  return path;
}

mamba::LanguageModel ModelFlags::load(const char* command) const {
  std::optional<mamba::DType> wanted;
  if (!dtype.empty()) wanted = mamba::parse_storage_dtype(dtype);
  return mamba::LanguageModel::load(path(command), wanted, mamba::Device::parse(device));
}

mamba::Tokenizer ModelFlags::load_tokenizer(const char* command, const char* flag,
                                            const mamba::LanguageModel& model,
                                            const char* hint) const {
  const std::filesystem::path folder_of_model = path(command);
  const auto has = [&](const char* name) {
    return std::filesystem::exists(folder_of_model / name);
  };
  if (!tokenizer.empty()) return mamba::Tokenizer::load(tokenizer);
  // A vocabulary alone is an error that says how to make the file.
  if (has("tokenizer.json") || has("vocab.json")) {
    return mamba::Tokenizer::load(folder_of_model.string());
  }
  if (model.config().vocab_size == 256) return mamba::Tokenizer::bytes();
  throw mamba::ArgumentError(command, flag,
                             (folder_of_model / "tokenizer.json").string() + ", or --tokenizer",
                             std::string("neither") + hint);
}

mamba::Stream ModelFlags::stream() const {
  return mamba::Stream(mamba::Device::parse(device), threads);
}

void check_can_write(const char* command, const char* flag, const std::string& path) {
  namespace fs = std::filesystem;
  const auto refuse = [&](const std::string& why) {
    throw mamba::Error(command, flag, "a file that can be written", path + ": " + why);
  };
  if (fs::is_directory(path)) refuse("a folder");
  // A device or a pipe would be replaced by the file. A link is, and is meant to be.
  const fs::file_status there = fs::symlink_status(path);
  if (fs::exists(there) && !fs::is_regular_file(there) && !fs::is_symlink(there)) {
    refuse("not a regular file");
  }
  const fs::path parent = fs::path(path).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  // Files are written under another name first and then renamed, so it is the folder that counts.
  if (access(folder.c_str(), W_OK | X_OK) != 0) refuse(folder + ": " + std::strerror(errno));
  if (!fs::is_directory(folder)) refuse(folder + " is not a folder");
}

void add_cache(CLI::App& app, std::string& folder) {
  app.add_option("--cache", folder,
                 "Folder that keeps what the model remembers after pieces of prompts, 1 GiB at "
                 "most: prompts that begin alike are read once");
}

mamba::CacheOptions file_cache(const char* program, const std::string& folder) {
  mamba::CacheOptions options;
  options.host_bytes = 0;
  options.disk_bytes = cache_bytes;
  options.folder = folder;
  options.on_problem = [program](const std::string& problem) {
    std::fprintf(stderr, "%s: %s\n", program, problem.c_str());
  };
  return options;
}
