// What the server does for a request, without sockets: bytes in, a status and bytes out.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "body.hpp"
#include "chat_template.hpp"
#include "engine.hpp"
#include "http.hpp"
#include "metrics.hpp"
#include "state_store.hpp"
#include "worker.hpp"

namespace server {

struct CoreOptions {
  std::string model;  // its name
  std::int64_t capacity = 8;
  std::vector<std::string> api_keys = {};  // none: nobody is asked for one
  // Names, beside those of this machine, that a request may say it comes to. (A page on the web can
  // have its own name lead to 127.0.0.1.)
  std::vector<std::string> hosts = {};
  // Of pages elsewhere that may ask: "https://example.org"; "*": any.
  std::vector<std::string> origins = {};
  std::string page = {};                           // of GET /
  std::string page_policy = "default-src 'none'";  // its Content-Security-Policy
  std::string openapi = {};                        // of GET /openapi.json
  Chat chat = {};
  std::int64_t most_json = std::int64_t{8} << 20;   // bytes of a body of JSON
  std::int64_t most_tokens = INT64_MAX;             // of one text
  std::int64_t most_state = std::int64_t{1} << 30;  // and of one that is a state
};

class Core {
 public:
  // All must outlive it; `cache` may be nullptr.
  Core(Engine& engine, StateStore& states, const mamba::StateCache* cache, Executor executor,
       CoreOptions options);

  // Why a request is refused before its body is read, from its first line and headers.
  std::optional<Response> refuse(const Request& head) const;
  std::int64_t most_body(const Request& head) const;
  // What pages of its origin may read of an answer.
  Headers cross_origin(const Request& request) const;
  // Throws nothing. A large body is read by the executor, so that the caller need not wait for it.
  Cancel handle(Request request, const std::shared_ptr<Reply>& reply);
  // What comes from now on is refused with 503.
  void drain() { draining_ = true; }
  bool ending() const { return draining_; }

  Engine& engine() { return engine_; }
  StateStore& states() { return states_; }
  Metrics& metrics() { return metrics_; }
  const CoreOptions& options() const { return options_; }
  const Executor& executor() const { return executor_; }
  std::int64_t vocab() const { return engine_.model().config().vocab_size; }
  Limits limits() const { return {engine_.tokenizer(), vocab(), options_.most_tokens}; }
  std::uint64_t random_seed();
  // Random digits behind `prefix`.
  std::string new_name(const char* prefix);

 private:
  Cancel answer(const Request& request, const std::shared_ptr<Reply>& reply);
  Cancel route(const Request& request, const std::shared_ptr<Reply>& reply);
  Cancel route_states(const Request& request, const std::vector<std::string>& path,
                      const std::string& query, const std::shared_ptr<Reply>& reply);
  Response models() const;
  Response health() const;
  Response prometheus() const;
  Response tokenize(const Request& request) const;
  Response detokenize(const Request& request) const;

  Engine& engine_;
  StateStore& states_;
  const mamba::StateCache* cache_;
  Executor executor_;
  CoreOptions options_;
  Metrics metrics_;
  std::int64_t created_;
  std::atomic<bool> draining_{false};
  std::mutex random_mutex_;
  std::mt19937_64 random_;
};

// A response of JSON.
Response json_response(const Json& json, int status = 200);

// Ids as whole characters, one text for each: a token that completes no character has none.
std::vector<std::string> texts_of(const mamba::Tokenizer& tokenizer, const Ids& ids);

}  // namespace server
