#include "states.hpp"

#include <charconv>
#include <mutex>
#include <new>
#include <utility>

#include "body.hpp"
#include "call.hpp"
#include "state_view.hpp"

namespace server {

Json entry_json(const StateEntry& entry) {
  return {{"id", entry.id},
          {"parent", entry.parent.empty() ? Json() : Json(entry.parent)},
          {"tokens", entry.tokens},
          {"bytes", entry.bytes},
          {"created", entry.created}};
}

void state_not_there(const std::string& id) {
  throw ApiError(404, "expected a state that is kept, got " + id.substr(0, 64), "id");
}

namespace {

// What went wrong in `work`, if anything did.
template <class F>
std::optional<ApiError> attempt(const F& work) {
  try {
    work();
  } catch (const ApiError& error) {
    return error;
  } catch (const TooLarge& error) {
    return ApiError(413, error.what());
  } catch (const std::bad_alloc&) {
    return ApiError(503, "expected memory for a state, got none");
  } catch (const mamba::Error& error) {  // a disk that is full, say
    return ApiError(503, error.what());
  } catch (const std::exception& error) {
    return ApiError(500, error.what());
  }
  return std::nullopt;
}

// work() on the worker; what it throws is the answer.
template <class F>
Cancel later(Core& core, const std::shared_ptr<Reply>& reply, F work) {
  core.executor()([reply, work = std::move(work)] {
    if (const std::optional<ApiError> error = attempt(work)) reply->send(error->response());
  });
  return {};
}

std::shared_ptr<const KeptText> text_of_state(Core& core, const std::string& id) {
  std::shared_ptr<const KeptText> text = core.states().get(id);
  if (!text) state_not_there(id);
  return text;
}

Response created(const StateEntry& entry, Json json) {
  Response response = json_response(json, 201);
  response.headers.emplace_back("Location", "/states/" + entry.id);
  return response;
}

// ---- reading -----------------------------------------------------------------------------------

// A text that is read and kept.
class ReadCall : public Call {
 public:
  // `rewinds`: whether it is answered how many tokens were read again.
  ReadCall(Core& core, const Request& request, std::shared_ptr<Reply> reply, std::string parent,
           bool rewinds)
      : Call(core, request.account, reply),
        reply_(std::move(reply)),
        parent_(std::move(parent)),
        rewinds_(rewinds) {}

 private:
  void token(int, Token) override {}
  void finished(int, Finished end) override {
    if (!end.kept) return reply_->send(ApiError(503, "the request was cancelled").response());
    later(core(), reply_, [self = shared_from_this(), this, end = std::move(end)] {
      const StateEntry entry = core().states().add(end.kept, parent_);
      Json json = entry_json(entry);
      if (rewinds_) json["read_again"] = end.read - end.known;
      reply_->send(created(entry, std::move(json)));
    });
  }
  void failed(int, const std::string& why) override { reply_->send(ApiError(500, why).response()); }

  std::shared_ptr<Reply> reply_;
  std::string parent_;
  bool rewinds_;
};

Job read_job(Ids prompt) {
  Job job;
  job.prompt = std::move(prompt);
  job.max_tokens = 0;
  job.keep = true;
  return job;
}

// What is given as "prompt": a text or ids. `begins`: whether a text begins with it.
Ids prompt_of(Core& core, const Body& body, bool begins) {
  Ids prompt;
  const bool given = body.with("prompt", [&](const Json& json) {
    if (json.is_string()) {
      const auto& text = json.get_ref<const std::string&>();
      prompt = core.engine().tokenizer().encode(text, begins);
      for (const std::int32_t id : prompt) {
        if (id >= core.vocab()) refuse("a text whose tokens the model has", json);
      }
    } else if (json.is_array()) {
      prompt = ids_of(json, core.vocab());
    } else {
      refuse("a text, or token ids", json);
    }
    if (prompt.empty()) refuse("at least one token", json);
  });
  if (!given) throw ApiError(422, "prompt: expected a text, or token ids, got none", "prompt");
  return prompt;
}

// ---- writing -----------------------------------------------------------------------------------

class GenerateCall : public Call {
 public:
  GenerateCall(Core& core, const Request& request, std::shared_ptr<Reply> reply, std::string id,
               int n, bool several, bool stream, std::uint64_t seed)
      : Call(core, request.account, std::move(reply)),
        id_(std::move(id)),
        several_(several),
        stream_(stream),
        seed_(seed),
        choices_(static_cast<std::size_t>(n)),
        left_(n) {}

 private:
  struct Choice {
    std::string text;
    Ids tokens;
    Finish reason = Finish::max_tokens;
    std::optional<StateEntry> entry;
  };

  void token(int index, Token token) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Choice& choice = choices_[static_cast<std::size_t>(index)];
    if (!stream_) {
      choice.text += token.text;
      choice.tokens.push_back(token.id);
      return;
    }
    write("data: {\"index\":" + std::to_string(index) + ",\"token\":" + std::to_string(token.id) +
          ",\"text\":" + json_string(token.text) +
          ",\"position\":" + std::to_string(token.position) + "}\n\n");
  }

  // The state is on the disk before anybody is told of it, and nobody's tokens wait for that.
  void finished(int index, Finished end) override {
    core().executor()([self = shared_from_this(), this, index, end = std::move(end)] {
      std::optional<StateEntry> entry;
      const std::optional<ApiError> error = attempt([&] {
        if (end.kept) entry = core().states().add(end.kept, id_);
      });
      const std::lock_guard<std::mutex> lock(mutex_);
      Choice& choice = choices_[static_cast<std::size_t>(index)];
      choice.text += end.text;
      choice.reason = end.reason;
      choice.entry = entry;
      if (error) {
        tell(*error);
      } else if (stream_) {
        Json last = end_json(choice);
        last["index"] = index;
        last["text"] = end.text;
        write("data: " + text_of(last) + "\n\n");
      }
      one_less();
    });
  }

  void failed(int, const std::string& why) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    tell(ApiError(500, why));
    one_less();
  }

  void tell(const ApiError& error) {
    if (stream_ && begun_) {
      write("data: " + error.json() + "\n\n");
    } else {
      error_ = error.response();
    }
  }

  Json end_json(const Choice& choice) const {
    return {{"finish_reason", reason_of(choice.reason)},
            {"state", choice.entry ? entry_json(*choice.entry) : Json()}};
  }

  void one_less() {
    if (--left_ > 0) return;
    if (error_ && !begun_) return reply().send(*error_);
    if (stream_) {
      write("data: [DONE]\n\n");
      return reply().end();
    }
    Json all = Json::array();
    for (const Choice& choice : choices_) {
      Json one = end_json(choice);
      one["text"] = choice.text;
      one["tokens"] = choice.tokens;
      all.push_back(std::move(one));
    }
    Json answer = several_ ? Json{{"choices", std::move(all)}} : std::move(all.front());
    answer["seed"] = seed_;
    reply().send(json_response(answer));
  }

  void write(std::string events) {
    if (!std::exchange(begun_, true)) reply().begin();
    reply().write(std::move(events));
  }

  std::string id_;
  bool several_, stream_;
  std::uint64_t seed_;
  std::mutex mutex_;  // the engine and the worker both have something to say
  std::vector<Choice> choices_;
  int left_;
  bool begun_ = false;
  std::optional<Response> error_;
};

// ask(state of `id`): at once where it is in memory, else when its file is read.
template <class F>
Cancel with_state(Core& core, const std::string& id, const std::shared_ptr<Reply>& reply, F ask) {
  if (!core.states().find(id)) state_not_there(id);
  if (auto text = core.states().in_memory(id)) return ask(std::move(text));
  auto cancel = std::make_shared<LateCancel>();
  later(core, reply,
        [&core, id, cancel, ask = std::move(ask)] { cancel->set(ask(text_of_state(core, id))); });
  return [cancel] { (*cancel)(); };
}

}  // namespace

Cancel make_state(Core& core, const Request& request, const std::shared_ptr<Reply>& reply) {
  const Body body(request);
  std::string from;
  body.read("from", from);
  Job job = read_job(prompt_of(core, body, from.empty()));
  auto call = std::make_shared<ReadCall>(core, request, reply, from, false);
  const auto start = [call, job = std::move(job)](std::shared_ptr<const KeptText> text) mutable {
    job.from = std::move(text);
    std::vector<Job> jobs;
    jobs.push_back(std::move(job));
    return call->submit(std::move(jobs));
  };
  if (from.empty()) return std::decay_t<decltype(start)>(start)(nullptr);
  try {
    return with_state(core, from, reply, [start](std::shared_ptr<const KeptText> text) {
      return std::decay_t<decltype(start)>(start)(std::move(text));
    });
  } catch (const ApiError& error) {
    if (error.status() != 404) throw;
    throw ApiError(404, std::string("from: ") + error.what(), "from");
  }
}

Cancel upload_state(Core& core, const Request& request, const std::shared_ptr<Reply>& reply) {
  const std::string type = request.header("content-type");
  if (type.substr(0, type.find(';')) != "application/octet-stream") {
    throw ApiError(415, "Content-Type: expected application/octet-stream, got " +
                            (type.empty() ? std::string("none") : text_of(type)));
  }
  std::shared_ptr<const KeptText> text;
  try {
    text = std::make_shared<KeptText>(
        from_bytes(mamba::ByteView(request.body.data(), request.body.size()), "the body"));
  } catch (const mamba::Error& error) {
    throw ApiError(422, error.what(), "body");
  }
  const mamba::LanguageModel& model = core.engine().model();
  if (text->snapshot.fingerprint() != model.fingerprint()) {
    throw ApiError(409,
                   "expected a state of this model (" + model.fingerprint() +
                       "), got one of another (" + text->snapshot.fingerprint() + ")",
                   "body");
  }
  return later(core, reply, [&core, reply, text] {
    try {
      text->snapshot.check(core.engine().model());  // shapes, dtype, ids
    } catch (const mamba::ArgumentError& error) {
      throw ApiError(409, error.what(), "body");
    }
    const StateEntry entry = core.states().add(text, "");
    reply->send(created(entry, entry_json(entry)));
  });
}

Cancel generate(Core& core, const std::string& id, const Request& request,
                const std::shared_ptr<Reply>& reply) {
  const Body body(request);
  Job job;
  read_writing(body, core.limits(), {"max_tokens"}, core.random_seed(), job);
  const bool several = body.read("n", job.choices, 1, 128);
  bool stream = false;
  body.read("stream", stream);
  job.keep = true;
  const auto call = std::make_shared<GenerateCall>(
      core, request, reply, id, job.choices, several && job.choices > 1, stream, job.sampling.seed);
  return with_state(core, id, reply, [call, job](std::shared_ptr<const KeptText> text) {
    Job own = job;
    own.from = std::move(text);
    return call->submit({own});
  });
}

Cancel rewind(Core& core, const std::string& id, const Request& request,
              const std::shared_ptr<Reply>& reply) {
  const Body body(request);
  const std::optional<StateEntry> entry = core.states().find(id);
  if (!entry) state_not_there(id);
  std::int64_t tokens = 0;
  const auto use = [&](const Json& json) {
    read_value(json, tokens);
    if (tokens >= 1 && tokens <= entry->tokens) return;
    refuse(("a whole number from 1 to " + std::to_string(entry->tokens)).c_str(), json);
  };
  if (!body.with("tokens", use)) {
    throw ApiError(422, "tokens: expected a whole number, got none", "tokens");
  }
  const std::optional<StateEntry> parent = core.states().ancestor(id, tokens);
  const auto call =
      std::make_shared<ReadCall>(core, request, reply, parent ? parent->id : std::string(), true);
  auto cancel = std::make_shared<LateCancel>();
  later(core, reply, [&core, id, tokens, parent, call, cancel] {
    const std::shared_ptr<const KeptText> whole = text_of_state(core, id);
    Job job = read_job({whole->path.begin(), whole->path.begin() + tokens});
    job.look_for = true;
    if (parent) job.from = core.states().get(parent->id);
    cancel->set(call->submit({job}));
  });
  return [cancel] { (*cancel)(); };
}

Cancel download_state(Core& core, const std::string& id, const Request& request,
                      const std::shared_ptr<Reply>& reply) {
  if (!core.states().find(id)) state_not_there(id);
  return later(core, reply, [&core, id, reply, known = request.header("if-none-match")] {
    const auto bytes = std::make_shared<const mamba::Bytes>(to_bytes(*text_of_state(core, id)));
    const std::string tag = "\"" + hash_in(*bytes) + "\"";
    Response response;
    response.content_type = "application/octet-stream";
    response.headers = {{"ETag", tag},
                        {"Content-Disposition", "attachment; filename=\"" + id + ".safetensors\""}};
    if (known.find(tag) != std::string::npos || known == "*") {
      response.status = 304;
    } else {
      response.bytes = bytes;
    }
    reply->send(std::move(response));
  });
}

Cancel view_state(Core& core, const std::string& id, const std::string& what,
                  const std::string& query, const std::shared_ptr<Reply>& reply) {
  if (!core.states().find(id)) state_not_there(id);
  std::int64_t layer = 0;
  if (what == "map") {
    const std::int64_t layers = core.engine().model().config().n_layer;
    const std::string key = "layer=";
    const bool given = query.rfind(key, 0) == 0;
    const char* const first = query.data() + (given ? key.size() : 0);
    const char* const last = query.data() + query.size();
    const auto parsed = std::from_chars(first, given ? last : first, layer);
    if (!given || parsed.ec != std::errc() || parsed.ptr != last || layer < 0 || layer >= layers) {
      throw ApiError(
          422, "layer: expected 0 to " + std::to_string(layers - 1) + ", got " + json_string(query),
          "layer");
    }
  }
  return later(core, reply, [&core, id, what, layer, reply] {
    const std::shared_ptr<const KeptText> text = text_of_state(core, id);
    Json json;
    if (what == "map") {
      json = map_of(text->snapshot.state(), layer);
    } else if (what == "layers") {
      json = layers_of(text->snapshot.state());
    } else {
      const std::vector<std::string> texts = texts_of(core.engine().tokenizer(), text->path);
      std::string all;
      for (const std::string& one : texts) all += one;
      json = {{"tokens", text->path}, {"texts", texts}, {"text", all}};
    }
    reply->send(json_response(json));
  });
}

Cancel difference(Core& core, const std::string& a, const std::string& b,
                  const std::shared_ptr<Reply>& reply) {
  for (const std::string& id : {a, b}) {
    if (!core.states().find(id)) state_not_there(id);
  }
  return later(core, reply, [&core, a, b, reply] {
    const std::shared_ptr<const KeptText> one = text_of_state(core, a);
    const std::shared_ptr<const KeptText> other = text_of_state(core, b);
    reply->send(json_response(difference_of(one->snapshot.state(), other->snapshot.state())));
  });
}

}  // namespace server
