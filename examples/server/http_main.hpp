// mamba-server behind HTTP: its flags, and what runs then.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/stream.hpp>
#include <mamba/tokenizer.hpp>

#include "engine.hpp"

namespace server {

struct HttpFlags {
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string unix_path, api_key_file, states;
  std::vector<std::string> allow_hosts, allow_origins;
  std::int64_t queue = 256;
  std::int64_t state_bytes = std::int64_t{1} << 30;
  std::int64_t cache_bytes = std::int64_t{256} << 20;
  std::int64_t most_tokens = std::int64_t{1} << 20;
  std::int64_t most_body = std::int64_t{8} << 20;
  std::int64_t most_head = 16 << 10;
  std::int64_t idle_seconds = 60;
  std::int64_t connections = 1024;
  std::int64_t requests_a_client = 256;
  bool quiet = false;

  void add(CLI::App& app);
};

// Until Ctrl-C or SIGTERM. `folder`: the model's. `cache_folder`: empty for a cache in memory.
int serve_http(const HttpFlags& flags, const std::string& folder, const mamba::LanguageModel& model,
               const mamba::Tokenizer& tokenizer, mamba::Stream& stream,
               const std::string& cache_folder, std::int64_t capacity);

}  // namespace server
