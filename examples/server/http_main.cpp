#include "http_main.hpp"

#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include <mamba/error.hpp>
#include <mamba/state_cache.hpp>

#include "../programs/interrupt.hpp"
#include "../programs/memory.hpp"
#include "../programs/model_flags.hpp"
#include "core.hpp"
#include "http_server.hpp"

extern const char page_html[];
extern const unsigned long page_html_size;
extern const char page_policy[];
extern const char openapi_json[];
extern const unsigned long openapi_json_size;

namespace server {

namespace {

constexpr const char* program = "mamba-server";

std::vector<std::string> keys_in(const std::string& path) {
  std::vector<std::string> keys;
  if (path.empty()) return keys;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) keys.push_back(line);
  }
  if (keys.empty()) {
    throw mamba::Error(program, "--api-key-file", "a file with a key in each line",
                       path + ": none");
  }
  return keys;
}

void log_problem(const std::string& problem) { log_line(",\"problem\":" + json_string(problem)); }

mamba::CacheOptions cache_options(const HttpFlags& flags, const std::string& folder) {
  mamba::CacheOptions options;
  if (folder.empty()) {
    options.host_bytes = flags.cache_bytes;
  } else {
    options = file_cache(program, folder);
  }
  options.on_problem = log_problem;
  return options;
}

// Ends the engine's thread, whatever happens meanwhile.
class Running {
 public:
  explicit Running(Engine& engine) : engine_(engine), thread_([&engine] { engine.run(); }) {}
  ~Running() {
    engine_.stop();
    thread_.join();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  Engine& engine_;
  std::thread thread_;
};

}  // namespace

void HttpFlags::add(CLI::App& app) {
  const auto count = [&app](const char* name, std::int64_t& value, std::int64_t low,
                            const char* what) {
    app.add_option(name, value, what)
        ->check(whole_number<std::int64_t>(low))
        ->capture_default_str();
  };
  app.add_option("--host", host, "Address to listen on")->capture_default_str();
  app.add_option("--port", port, "Port; 0: any that is free")
      ->check(whole_number<std::uint16_t>(0))
      ->capture_default_str();
  app.add_option("--unix", unix_path, "Socket to listen on in place of an address");
  app.add_option("--api-key-file", api_key_file, "A key in each line: requests must bring one");
  app.add_option("--allow-host", allow_hosts,
                 "Name that requests may come to, beside localhost and addresses");
  app.add_option("--allow-origin", allow_origins,
                 "Origin of pages elsewhere that may ask (https://example.org; *: any)");
  app.add_option("--states", states, "Folder that keeps states over a restart");
  count("--state-bytes", state_bytes, 1, "Bytes of all states that are kept");
  count("--cache-bytes", cache_bytes, 0, "Bytes of beginnings of texts that are not read again");
  count("--queue", queue, 0, "Texts that may wait for a place");
  count("--max-tokens", most_tokens, 1, "Tokens of one text that is written");
  count("--max-body", most_body, 1, "Bytes of a body of JSON");
  count("--max-head", most_head, 1024, "Bytes of a first line and its headers");
  count("--idle-seconds", idle_seconds, 1, "Until a client that says or takes nothing has gone");
  count("--max-connections", connections, 1, "Connections at once");
  app.add_flag("--quiet", quiet, "No line in the log for each request");
  count("--max-requests", requests_a_client, 1, "Requests at once from one address");
}

int serve_http(const HttpFlags& flags, const std::string& folder, const mamba::LanguageModel& model,
               const mamba::Tokenizer& tokenizer, mamba::Stream& stream,
               const std::string& cache_folder, std::int64_t capacity) {
  const auto bytes = [](std::int64_t of) { return static_cast<double>(of); };
  check_memory(program, "--state-bytes", "states, beginnings of texts and as many answers",
               bytes(flags.state_bytes) + (cache_folder.empty() ? bytes(flags.cache_bytes) : 0) +
                   (model.device().is_cuda()
                        ? 0
                        : bytes(capacity) * bytes_of_generator(model.config(), model.dtype())),
               mamba::Device::cpu());
  CoreOptions options;
  options.api_keys = keys_in(flags.api_key_file);
  options.model = std::filesystem::path(folder).filename().string();
  options.capacity = capacity;
  options.hosts = flags.allow_hosts;
  options.origins = flags.allow_origins;
  options.page.assign(page_html, page_html_size);
  options.page_policy = page_policy;
  options.openapi.assign(openapi_json, openapi_json_size);
  options.chat = load_chat(folder);
  options.most_json = flags.most_body;
  options.most_tokens = flags.most_tokens;
  // The ids of a path beside it may take as much as a body of JSON.
  options.most_state = flags.most_body + 2 * static_cast<std::int64_t>(
                                                 bytes_of_generator(model.config(), model.dtype()));

  std::optional<mamba::StateCache> cache;
  if (flags.cache_bytes > 0 || !cache_folder.empty()) {
    cache.emplace(model, cache_options(flags, cache_folder));
  }
  StoreOptions store;
  store.bytes = flags.state_bytes;
  store.folder = flags.states;
  store.on_problem = log_problem;
  StateStore states(model, store);
  EngineOptions engine_options;
  engine_options.capacity = capacity;
  engine_options.queue = flags.queue;
  Engine engine(model, tokenizer, cache ? &*cache : nullptr, stream, engine_options);
  Worker* at_work = nullptr;
  Core core(
      engine, states, cache ? &*cache : nullptr,
      [&at_work](Work work) { at_work->run(std::move(work)); }, options);
  HttpOptions http;
  http.host = flags.host;
  http.port = flags.port;
  http.unix_path = flags.unix_path;
  http.most_head = flags.most_head;
  http.idle_seconds = flags.idle_seconds;
  http.connections = flags.connections;
  http.requests_a_client = flags.requests_a_client;
  http.log = !flags.quiet;
  HttpServer http_server(core, http);
  // What they still do at the end needs all of the above.
  Worker worker;
  at_work = &worker;
  const Running running(engine);
  log_line(",\"listening\":" + json_string(http_server.address()) +
           ",\"model\":" + json_string(options.model));
  http_server.run(interrupt_descriptor());
  log_line(",\"ended\":" + json_string(http_server.address()));
  return 0;
}

}  // namespace server
