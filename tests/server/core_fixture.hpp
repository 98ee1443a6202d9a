// The core of mamba-server with an engine that is stepped by hand: one thread, no sockets.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "generate/texts.hpp"
#include "programs/whole_text.hpp"
#include "server/core.hpp"
#include "testing.hpp"

namespace server::testing {

// What the tests of the server ask: a model of bytes.
inline const mamba::Tokenizer of_bytes = mamba::Tokenizer::bytes();
inline const mamba::LanguageModel& model() {
  static const mamba::LanguageModel one = mamba::testing::bytes_model(mamba::Device::cpu());
  return one;
}

// What it writes with nobody beside it.
inline Ids alone(const std::string& prompt, std::int64_t count,
                 mamba::SamplingOptions sampling = {}) {
  mamba::Generator generator(model(), sampling);
  generator.read(of_bytes.encode(prompt));
  mamba::GenerateOptions options;
  options.max_tokens = count;
  return generator.generate(options).tokens;
}
inline std::string text_alone(const std::string& prompt, std::int64_t count,
                              mamba::SamplingOptions sampling = {}) {
  return whole_text(of_bytes, alone(prompt, count, sampling));
}

inline Json with(Json a, const Json& b) {
  a.update(b);
  return a;
}

// mamba::testing::lively(seed), as a request says it.
inline Json lively_fields(std::uint64_t seed) {
  const mamba::SamplingOptions options = mamba::testing::lively(seed);
  return {{"temperature", 1.2}, {"top_k", options.top_k},    {"top_p", 0.95},
          {"min_p", 0.01},      {"repetition_penalty", 1.1}, {"seed", seed}};
}

struct Answer : Reply {
  std::optional<Response> whole;
  bool began = false, ended = false;
  std::string events;

  void send(Response response) override {
    EXPECT_FALSE(done()) << "answered twice";
    whole = std::move(response);
  }
  void begin() override {
    EXPECT_FALSE(began || done());
    began = true;
  }
  void write(std::string text) override {
    EXPECT_TRUE(began && !ended);
    events += text;
  }
  void end() override {
    EXPECT_TRUE(began && !ended);
    ended = true;
  }

  bool done() const { return whole.has_value() || ended; }
  int status() const { return whole ? whole->status : 200; }
  Json json() const {
    Json parsed = Json::parse(whole ? whole->body : "", nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(parsed.is_discarded()) << (whole ? whole->body : events);
    return parsed;
  }
  std::string error() const { return json().at("error").at("message"); }
  Json param() const { return json().at("error").at("param"); }
  // Of each "data: " but the last, which is [DONE].
  std::vector<Json> list() const {
    std::vector<Json> all;
    std::size_t at = 0;
    bool done = false;
    while (at < events.size()) {
      const std::size_t end = events.find("\n\n", at);
      const std::string event = events.substr(at, end - at);
      EXPECT_EQ(event.rfind("data: ", 0), 0u) << event;
      EXPECT_FALSE(done);
      done = event == "data: [DONE]";
      if (!done) all.push_back(Json::parse(event.substr(6)));
      at = end + 2;
    }
    EXPECT_TRUE(done) << events;
    return all;
  }
};

// A server's inside. The model must outlive it.
class Inside {
 public:
  explicit Inside(const mamba::LanguageModel& model,
                  const mamba::Tokenizer& tokenizer = mamba::Tokenizer::bytes(),
                  StoreOptions store = {}, EngineOptions engine_options = {},
                  CoreOptions options = {})
      : tokenizer_(tokenizer),
        cache_(model),
        engine_(model, tokenizer_, &cache_, stream_, engine_options),
        states_(model, std::move(store)),
        core_(
            engine_, states_, &cache_, [](const Work& work) { work(); },
            named(std::move(options))) {}

  static Request post(const std::string& target, const Json& body) {
    Request request;
    request.method = "POST";
    request.target = target;
    request.headers = {{"content-type", "application/json"}, {"host", "localhost"}};
    request.body = body.dump();
    return request;
  }
  static Request get(const std::string& target, const std::string& method = "GET") {
    Request request;
    request.method = method;
    request.target = target;
    request.headers = {{"host", "localhost"}};
    return request;
  }

  std::shared_ptr<Answer> ask(const Request& request) {
    auto answer = std::make_shared<Answer>();
    if (auto refused = core_.refuse(request)) {
      answer->send(std::move(*refused));
    } else {
      core_.handle(request, answer);
    }
    while (!answer->done() && engine_.step()) {
    }
    EXPECT_TRUE(answer->done());
    return answer;
  }
  std::shared_ptr<Answer> post_to(const std::string& target, const Json& body) {
    return ask(post(target, body));
  }

  Core& core() { return core_; }
  Engine& engine() { return engine_; }
  StateStore& states() { return states_; }

 private:
  static CoreOptions named(CoreOptions options) {
    options.model = "bytes";
    return options;
  }

  mamba::Tokenizer tokenizer_;
  mamba::Stream stream_{mamba::Device::cpu(), 1};
  mamba::StateCache cache_;
  Engine engine_;
  StateStore states_;
  Core core_;
};

}  // namespace server::testing
