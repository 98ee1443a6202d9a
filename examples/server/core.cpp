#include "core.hpp"

#include <algorithm>
#include <ctime>
#include <new>
#include <utility>

#include <mamba/version.hpp>

#include "../programs/whole_text.hpp"
#include "body.hpp"
#include "openai.hpp"
#include "states.hpp"

namespace server {

namespace {

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  std::size_t at = 1;
  while (at <= path.size()) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    parts.push_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Without its port.
std::string host_name(const std::string& host) {
  const std::size_t bracket = host.find(']');  // of an address of IPv6
  const std::size_t colon = host.find(':', bracket == std::string::npos ? 0 : bracket);
  return host.substr(0, colon);
}

bool is_address(const std::string& name) {
  if (!name.empty() && name.front() == '[') return true;
  return !name.empty() && name.find_first_not_of("0123456789.") == std::string::npos;
}

// In a time that does not tell how much of it is right.
bool same(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(other);
  }
  return difference == 0;
}

void allow(const Request& request, const char* methods) {
  const std::string all = methods;
  std::size_t at = 0;
  while (at < all.size()) {
    const std::size_t end = std::min(all.find(", ", at), all.size());
    if (all.compare(at, end - at, request.method) == 0) return;
    at = end + 2;
  }
  throw ApiError(405, "expected " + all + ", got " + request.method.substr(0, 20), "",
                 {{"Allow", all}});
}

}  // namespace

Response json_response(const Json& json, int status) {
  Response response;
  response.status = status;
  response.body = text_of(json);
  return response;
}

std::vector<std::string> texts_of(const mamba::Tokenizer& tokenizer, const Ids& ids) {
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  mamba::TextStream stream;
  for (const std::int32_t id : ids) texts.push_back(stream.push(tokenizer.decode({id})));
  if (!texts.empty()) texts.back() += stream.finish();
  return texts;
}

Core::Core(Engine& engine, StateStore& states, const mamba::StateCache* cache, Executor executor,
           CoreOptions options)
    : engine_(engine),
      states_(states),
      cache_(cache),
      executor_(std::move(executor)),
      options_(std::move(options)),
      created_(std::time(nullptr)),
      random_(std::random_device()()) {}

std::uint64_t Core::random_seed() {
  const std::lock_guard<std::mutex> lock(random_mutex_);
  return random_() >> 11;  // as JavaScript and JSON's doubles can say it
}

std::string Core::new_name(const char* prefix) {
  std::uint64_t bits = 0;
  {
    const std::lock_guard<std::mutex> lock(random_mutex_);
    bits = random_();
  }
  std::string name = prefix;
  for (int digit = 0; digit < 16; ++digit, bits >>= 4) name += "0123456789abcdef"[bits & 15];
  return name;
}

// ---- before the body ---------------------------------------------------------------------------

std::optional<Response> Core::refuse(const Request& head) const {
  const auto refused = [](int status, const std::string& why, Headers headers = {}) {
    return ApiError(status, why, "", std::move(headers)).response();
  };
  const auto among = [](const std::vector<std::string>& list, const std::string& one) {
    return std::find(list.begin(), list.end(), one) != list.end();
  };
  const std::string host = head.header("host");
  const std::string name = host_name(host);
  if (!head.local && name != "localhost" && !is_address(name) && !among(options_.hosts, name)) {
    return refused(403,
                   "Host: expected localhost, an address or a name given by --allow-host, got " +
                       json_string(host));
  }
  const std::string origin = head.header("origin");
  const bool own = origin == "http://" + host || origin == "https://" + host;
  if (!origin.empty() && !own && !among(options_.origins, origin) &&
      !among(options_.origins, "*")) {
    return refused(403, "Origin: expected this server's or one given by --allow-origin, got " +
                            json_string(origin));
  }
  const std::string path = head.target.substr(0, head.target.find('?'));
  const bool open = path == "/health" || path == "/" || head.method == "OPTIONS";
  if (!options_.api_keys.empty() && !open) {
    const std::string given = head.header("authorization");
    const bool known =
        std::any_of(options_.api_keys.begin(), options_.api_keys.end(),
                    [&](const std::string& key) { return same("Bearer " + key, given); });
    if (!known) {
      return refused(401, "Authorization: expected Bearer and a key of this server's, got another",
                     {{"WWW-Authenticate", "Bearer"}});
    }
  }
  if (draining_ && path != "/health" && path != "/metrics") {
    return refused(503, "the server ends: expected no more requests", {{"Retry-After", "5"}});
  }
  return std::nullopt;
}

std::int64_t Core::most_body(const Request& head) const {
  const bool state = head.method == "PUT" && head.target == "/states";
  return state ? options_.most_state : options_.most_json;
}

Headers Core::cross_origin(const Request& request) const {
  const std::string origin = request.header("origin");
  if (origin.empty() || options_.origins.empty()) return {};
  return {{"Access-Control-Allow-Origin", origin},
          {"Vary", "Origin"},
          {"Access-Control-Expose-Headers", "ETag, Location, Retry-After, X-Request-Id"}};
}

// ---- requests ----------------------------------------------------------------------------------

Cancel Core::handle(Request request, const std::shared_ptr<Reply>& reply) {
  constexpr std::size_t large = std::size_t{1} << 16;  // a millisecond or two of JSON and tokens
  if (request.body.size() < large) return answer(request, reply);
  const auto kept = std::make_shared<const Request>(std::move(request));
  const auto cancel = std::make_shared<LateCancel>();
  executor_([this, kept, reply, cancel] { cancel->set(answer(*kept, reply)); });
  return [cancel] { (*cancel)(); };
}

Cancel Core::answer(const Request& request, const std::shared_ptr<Reply>& reply) {
  try {
    return route(request, reply);
  } catch (const ApiError& error) {
    reply->send(error.response());
  } catch (const std::bad_alloc&) {
    reply->send(ApiError(503, "expected memory, got none").response());
  } catch (const std::exception& error) {
    reply->send(ApiError(500, error.what()).response());
  }
  return {};
}

Cancel Core::route(const Request& request, const std::shared_ptr<Reply>& reply) {
  const std::size_t question = std::min(request.target.find('?'), request.target.size());
  const std::string path = request.target.substr(0, question);
  const std::string query =
      question < request.target.size() ? request.target.substr(question + 1) : std::string();
  const auto say = [&](const char* methods, const auto& make) -> Cancel {
    allow(request, methods);
    reply->send(make());
    return {};
  };
  if (request.method == "OPTIONS" && !request.header("origin").empty()) {
    Response response;
    response.status = 204;
    response.headers = {
        {"Access-Control-Allow-Methods", "GET, POST, PUT, DELETE"},
        {"Access-Control-Allow-Headers", "Authorization, Content-Type, If-None-Match"},
        {"Access-Control-Max-Age", "600"}};
    reply->send(std::move(response));
    return {};
  }
  if (path == "/") {
    return say("GET", [&] {
      Response response;
      response.body = options_.page;
      response.content_type = "text/html; charset=utf-8";
      response.headers = {{"Content-Security-Policy", options_.page_policy},
                          {"Referrer-Policy", "no-referrer"},
                          {"Cache-Control", "no-cache"}};
      return response;
    });
  }
  if (path == "/openapi.json") {
    return say("GET", [&] {
      Response response;
      response.body = options_.openapi;
      return response;
    });
  }
  if (path == "/health") return say("GET", [&] { return health(); });
  if (path == "/metrics") return say("GET", [&] { return prometheus(); });
  if (path == "/v1/models") return say("GET", [&] { return models(); });
  if (path == "/tokenize") return say("POST", [&] { return tokenize(request); });
  if (path == "/detokenize") return say("POST", [&] { return detokenize(request); });
  if (path == "/v1/completions") {
    allow(request, "POST");
    return complete(*this, request, reply);
  }
  if (path == "/v1/chat/completions") {
    allow(request, "POST");
    return chat(*this, request, reply);
  }
  const std::vector<std::string> parts = parts_of(path);
  if (!parts.empty() && parts.front() == "states")
    return route_states(request, parts, query, reply);
  throw ApiError(404, "expected a path of this server's (GET /openapi.json tells them), got " +
                          json_string(path.substr(0, 200)));
}

Cancel Core::route_states(const Request& request, const std::vector<std::string>& path,
                          const std::string& query, const std::shared_ptr<Reply>& reply) {
  if (path.size() == 1) {
    allow(request, "GET, POST, PUT");
    if (request.method == "POST") return make_state(*this, request, reply);
    if (request.method == "PUT") return upload_state(*this, request, reply);
    Json list = Json::array();
    for (const StateEntry& entry : states_.list()) list.push_back(entry_json(entry));
    reply->send(json_response(
        {{"states", std::move(list)}, {"bytes", states_.bytes()}, {"limit", states_.limit()}}));
    return {};
  }
  const std::string& id = path[1];
  const std::string verb = path.size() > 2 ? path[2] : "";
  if (path.size() == 2) {
    allow(request, "GET, DELETE");
    const std::optional<StateEntry> entry = states_.find(id);
    if (!entry) state_not_there(id);
    if (request.method == "DELETE") {
      states_.remove(id);
      Response response;
      response.status = 204;
      reply->send(std::move(response));
    } else {
      reply->send(json_response(entry_json(*entry)));
    }
    return {};
  }
  if (path.size() == 3 && (verb == "generate" || verb == "rewind")) {
    allow(request, "POST");
    return verb == "generate" ? generate(*this, id, request, reply)
                              : rewind(*this, id, request, reply);
  }
  if (path.size() == 3 && verb == "content") {
    allow(request, "GET");
    return download_state(*this, id, request, reply);
  }
  if (path.size() == 3 && (verb == "layers" || verb == "map" || verb == "text")) {
    allow(request, "GET");
    return view_state(*this, id, verb, query, reply);
  }
  if (path.size() == 4 && verb == "diff") {
    allow(request, "GET");
    return difference(*this, id, path[3], reply);
  }
  throw ApiError(404, "expected generate, rewind, content, text, layers, map or diff of a state");
}

Response Core::health() const {
  return json_response({{"status", draining_ ? "ending" : "ok"}, {"version", mamba::version}});
}

Response Core::models() const {
  const mamba::LanguageModel& model = engine_.model();
  const Json own{{"id", options_.model},
                 {"object", "model"},
                 {"created", created_},
                 {"owned_by", "mamba.cpp"},
                 {"parameters", model.parameter_count()},
                 {"dtype", mamba::name_of(model.dtype())},
                 {"device", model.device().name()},
                 {"layers", model.config().n_layer},
                 {"vocab_size", model.config().vocab_size},
                 {"fingerprint", model.fingerprint()},
                 {"chat", options_.chat.prompt.has_value()}};
  return json_response({{"object", "list"}, {"data", Json::array({own})}});
}

Response Core::prometheus() const {
  Metrics::Levels levels;
  levels.engine = engine_.counts();
  levels.capacity = options_.capacity;
  levels.states = states_.count();
  levels.state_bytes = states_.bytes();
  if (cache_ != nullptr) levels.cache = cache_->counts();
  Response response;
  response.body = metrics_.text(levels);
  response.content_type = "text/plain; version=0.0.4";
  return response;
}

Response Core::tokenize(const Request& request) const {
  const Body body(request);
  std::string text;
  if (!body.read("text", text)) throw ApiError(422, "text: expected a text, got none", "text");
  bool special = true;
  body.read("special_tokens", special);
  Ids ids;
  body.with("text", [&](const Json&) { ids = engine_.tokenizer().encode(text, special); });
  return json_response(
      {{"tokens", ids}, {"count", ids.size()}, {"texts", texts_of(engine_.tokenizer(), ids)}});
}

Response Core::detokenize(const Request& request) const {
  const Body body(request);
  Ids ids;
  if (!body.with("tokens", [&](const Json& json) { ids = ids_of(json, vocab()); })) {
    throw ApiError(422, "tokens: expected a list of token ids, got none", "tokens");
  }
  return json_response({{"text", whole_text(engine_.tokenizer(), ids)}});
}

}  // namespace server
