// The core of mamba-server: what a request says, and what comes back.
#include "server/core.hpp"

#include <gmock/gmock.h>

#include "core_fixture.hpp"
#include "generate/texts.hpp"
#include "server/poisoned_model.hpp"

namespace server {
namespace {

using mamba::testing::lively;
using testing::Answer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Inside;
using testing::lively_fields;
using testing::model;
using testing::of_bytes;
using testing::text_alone;
using testing::with;

// ---- completions ----

TEST(CompletionsTest, GiveTheTextOfAGenerator) {
  Inside inside(model());
  const auto answer = inside.post_to(
      "/v1/completions",
      with({{"prompt", "The state"}, {"max_tokens", 20}, {"model", "any"}}, lively_fields(5)));
  ASSERT_EQ(answer->status(), 200) << answer->whole->body;
  const Json json = answer->json();
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["model"], "bytes");
  EXPECT_EQ(json["choices"][0]["text"], text_alone("The state", 20, lively(5)));
  EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json["choices"][0]["logprobs"], nullptr);
  EXPECT_EQ(json["usage"]["prompt_tokens"], 9);
  EXPECT_EQ(json["usage"]["completion_tokens"], 20);
  EXPECT_EQ(json["usage"]["total_tokens"], 29);
}

TEST(CompletionsTest, StreamTheSame) {
  Inside inside(model());
  for (const bool usage : {false, true}) {
    const auto answer =
        inside.post_to("/v1/completions", with({{"prompt", "The state"},
                                                {"max_tokens", 20},
                                                {"stream", true},
                                                {"stream_options", {{"include_usage", usage}}}},
                                               lively_fields(5)));
    std::string text, reason;
    const std::vector<Json> events = answer->list();
    for (const Json& event : events) {
      EXPECT_EQ(event.contains("usage"), usage);
      if (event["choices"].empty()) continue;
      text += event["choices"][0]["text"];
      if (!event["choices"][0]["finish_reason"].is_null()) {
        reason = event["choices"][0]["finish_reason"];
      }
    }
    EXPECT_EQ(text, text_alone("The state", 20, lively(5)));
    EXPECT_EQ(reason, "length");
    EXPECT_EQ(events.back()["choices"].empty(), usage);
    if (usage) {
      EXPECT_EQ(events.back()["usage"]["completion_tokens"], 20);
    }
    EXPECT_GT(events.size(), 10u);
  }
}

TEST(CompletionsTest, TakePromptsInEveryForm) {
  Inside inside(model());
  const auto texts = [&](const Json& prompt) {
    std::vector<std::string> all;
    const auto answer = inside.post_to("/v1/completions",
                                       {{"prompt", prompt}, {"max_tokens", 6}, {"temperature", 0}});
    EXPECT_EQ(answer->status(), 200) << answer->whole->body;
    const Json json = answer->json();
    for (const Json& choice : json["choices"]) {
      EXPECT_EQ(choice["index"], all.size());
      all.push_back(choice["text"]);
    }
    return all;
  };
  const std::string one = text_alone("The", 6);
  const std::string two = text_alone("A", 6);
  EXPECT_THAT(texts("The"), ElementsAre(one));
  EXPECT_THAT(texts(Json{84, 104, 101}), ElementsAre(one));
  EXPECT_THAT(texts(Json::array({"The", "A"})), ElementsAre(one, two));
  EXPECT_THAT(texts(Json::array({{84, 104, 101}, {65}})), ElementsAre(one, two));
}

TEST(CompletionsTest, NullIsAbsentAndUnknownFieldsAreIgnored) {
  Inside inside(model());
  const auto answer = inside.post_to("/v1/completions", {{"prompt", "The"},
                                                         {"model", nullptr},
                                                         {"max_tokens", 6},
                                                         {"n", nullptr},
                                                         {"stop", nullptr},
                                                         {"seed", nullptr},
                                                         {"stream", nullptr},
                                                         {"stream_options", nullptr},
                                                         {"logprobs", nullptr},
                                                         {"best_of", 1},
                                                         {"presence_penalty", 0},
                                                         {"user", "me"},
                                                         {"temperature", 0},
                                                         {"top_p", 0.3},
                                                         {"top_k", 7}});
  EXPECT_EQ(answer->json()["choices"][0]["text"], text_alone("The", 6));
}

TEST(CompletionsTest, ChoicesAreThoseOfTheirSeeds) {
  Inside inside(model());
  const auto answer = inside.post_to(
      "/v1/completions", with({{"prompt", Json::array({"The", "A"})}, {"max_tokens", 12}, {"n", 2}},
                              lively_fields(7)));
  const Json choices = answer->json()["choices"];
  ASSERT_EQ(choices.size(), 4u);
  EXPECT_EQ(choices[0]["text"], text_alone("The", 12, lively(7)));
  EXPECT_EQ(choices[1]["text"], text_alone("The", 12, lively(8)));
  EXPECT_EQ(choices[2]["text"], text_alone("A", 12, lively(7)));
  EXPECT_EQ(choices[3]["text"], text_alone("A", 12, lively(8)));
}

TEST(CompletionsTest, AStopEndsTheTextBeforeIt) {
  Inside inside(model());
  const std::string text = text_alone("The state", 30);
  const std::string stop = text.substr(8, 3);
  for (const Json& given : {Json(stop), Json::array({"never", stop})}) {
    for (const bool stream : {false, true}) {
      const auto answer = inside.post_to("/v1/completions", {{"prompt", "The state"},
                                                             {"max_tokens", 30},
                                                             {"temperature", 0},
                                                             {"stop", given},
                                                             {"stream", stream}});
      std::string got;
      if (stream) {
        for (const Json& event : answer->list()) got += event["choices"][0]["text"];
      } else {
        got = answer->json()["choices"][0]["text"];
        EXPECT_EQ(answer->json()["choices"][0]["finish_reason"], "stop");
      }
      EXPECT_EQ(got, text.substr(0, text.find(stop)));
    }
  }
}

TEST(CompletionsTest, LogProbabilitiesAndEcho) {
  Inside inside(model());
  const Json asked{
      {"prompt", "The"}, {"max_tokens", 4}, {"temperature", 0}, {"logprobs", 2}, {"echo", true}};
  const auto answer = inside.post_to("/v1/completions", asked);
  const Json choice = answer->json()["choices"][0];
  EXPECT_EQ(choice["text"], "The" + text_alone("The", 4));
  const Json odds = choice["logprobs"];
  ASSERT_EQ(odds["tokens"].size(), 7u);
  EXPECT_EQ(odds["tokens"][1], "h");
  EXPECT_EQ(odds["token_logprobs"][0], nullptr);
  EXPECT_EQ(odds["top_logprobs"][0], nullptr);
  EXPECT_EQ(odds["top_logprobs"][6].size(), 2u);
  EXPECT_THAT(odds["text_offset"].get<std::vector<int>>(), ElementsAre(0, 1, 2, 3, 4, 5, 6));
  // Of a greedy token it is the largest.
  const std::string last = odds["tokens"][6];
  EXPECT_EQ(odds["top_logprobs"][6][last], odds["token_logprobs"][6]);
  mamba::Generator generator(model());
  generator.read(of_bytes.encode("The"));
  generator.next();
  EXPECT_NEAR(odds["token_logprobs"][3].get<double>(), generator.log_probs().chosen, 1e-4);

  const auto nothing = inside.post_to("/v1/completions", with(asked, {{"max_tokens", 0}}));
  EXPECT_EQ(nothing->json()["choices"][0]["text"], "The");
  EXPECT_EQ(nothing->json()["choices"][0]["logprobs"]["token_logprobs"][1],
            odds["token_logprobs"][1]);
  // A stream has the same odds, piece by piece.
  const auto streamed = inside.post_to("/v1/completions", with(asked, {{"stream", true}}));
  Json tokens = Json::array(), offsets = Json::array();
  for (const Json& event : streamed->list()) {
    const Json& own = event["choices"][0]["logprobs"];
    if (own.is_null()) continue;
    for (const Json& token : own["tokens"]) tokens.push_back(token);
    for (const Json& offset : own["text_offset"]) offsets.push_back(offset);
  }
  EXPECT_EQ(tokens, odds["tokens"]);
  EXPECT_EQ(offsets, odds["text_offset"]);
}

TEST(CompletionsTest, ABiasDecides) {
  Inside inside(model());
  const auto answer = inside.post_to(
      "/v1/completions",
      {{"prompt", "The"}, {"max_tokens", 3}, {"temperature", 0}, {"logit_bias", {{"90", 100}}}});
  EXPECT_EQ(answer->json()["choices"][0]["text"], "ZZZ");
}

TEST(CompletionsTest, ARefusalNamesTheField) {
  Inside inside(model());
  const auto refused = [&](Json more, const char* param, const char* text) {
    const auto answer =
        inside.post_to("/v1/completions", with({{"prompt", "The"}, {"max_tokens", 2}}, more));
    EXPECT_EQ(answer->status(), 422) << more;
    if (answer->status() != 422) return;
    EXPECT_EQ(answer->param(), param) << more;
    EXPECT_THAT(answer->error(), HasSubstr(text)) << more;
    EXPECT_EQ(answer->json()["error"]["type"], "invalid_request_error");
  };
  refused({{"prompt", nullptr}}, "prompt", "got none");
  refused({{"prompt", ""}}, "prompt", "at least one token");
  refused({{"prompt", Json::array()}}, "prompt", "got none");
  refused({{"prompt", {65, 256}}}, "prompt", "ids from 0 to 255, got 256");
  refused({{"prompt", {65, -1}}}, "prompt", "ids from 0 to 255, got -1");
  refused({{"prompt", {65, 1.5}}}, "prompt", "got 1.5");
  refused({{"prompt", Json::array({65, "A"})}}, "prompt", "got \"A\"");
  refused({{"prompt", {{"a", 1}}}}, "prompt", "expected a text");
  refused({{"max_tokens", -1}}, "max_tokens", "expected 0 to");
  refused({{"max_tokens", true}}, "max_tokens", "got true");
  refused({{"temperature", -1}}, "temperature", "got -1");
  refused({{"temperature", "hot"}}, "temperature", "got \"hot\"");
  refused({{"top_p", 1.5}}, "top_p", "expected 0 to 1");
  refused({{"temperature", 0}, {"top_p", 1.5}}, "top_p", "expected 0 to 1");
  refused({{"top_k", -3}}, "top_k", "got -3");
  refused({{"min_p", 2}}, "min_p", "got 2");
  refused({{"repetition_penalty", 0}}, "repetition_penalty", "got 0");
  refused({{"seed", 1.5}}, "seed", "got 1.5");
  refused({{"n", 0}}, "n", "from 1 to 128, got 0");
  refused({{"n", 129}}, "n", "from 1 to 128");
  refused({{"n", 100}, {"prompt", Json::array({"A", "B"})}}, "n", "of all prompts");
  refused({{"stop", ""}}, "stop", "1 to 256, got 0");
  refused({{"stop", Json::array({1})}}, "stop", "expected a text, got 1");
  refused({{"logprobs", 21}}, "logprobs", "from 0 to 20");
  refused({{"echo", 1}}, "echo", "true or false");
  refused({{"stream", "yes"}}, "stream", "true or false");
  refused({{"stream_options", 1}}, "stream_options", "an object");
  refused({{"best_of", 2}}, "best_of", "expected 1, or nothing, got 2");
  refused({{"suffix", "end"}}, "suffix", "got \"end\"");
  refused({{"presence_penalty", 0.5}}, "presence_penalty", "got 0.5");
  refused({{"logit_bias", {{"x", 1}}}}, "logit_bias", "token ids");
  refused({{"logit_bias", {{"256", 1}}}}, "logit_bias", "token ids");
  EXPECT_EQ(inside.engine().room(), 8);
  CoreOptions few;
  few.most_tokens = 5;
  Inside limited(model(), of_bytes, {}, {}, few);
  const auto long_one = limited.post_to("/v1/completions", {{"prompt", "A"}, {"max_tokens", 6}});
  EXPECT_EQ(long_one->error(), "max_tokens: expected 0 to 5, got 6");
  const auto silent = limited.post_to("/v1/completions", {{"prompt", "A"}});
  EXPECT_EQ(silent->json()["usage"]["completion_tokens"], 5);
}

TEST(CompletionsTest, WhatIsNoObjectOfJsonIsRefused) {
  Inside inside(model());
  const auto status = [&](const std::string& body, const char* type = "application/json") {
    Request request = Inside::post("/v1/completions", {});
    request.headers["content-type"] = type;
    request.body = body;
    const auto answer = inside.ask(request);
    EXPECT_EQ(answer->json().at("error").at("message").is_string(), true);
    return answer->status();
  };
  EXPECT_EQ(status(""), 400);
  EXPECT_EQ(status("{\"prompt\":"), 400);
  EXPECT_EQ(status("[1]"), 400);
  EXPECT_EQ(status("\xFF\xFE"), 400);
  EXPECT_EQ(status("{\"prompt\":" + std::string(100000, '[') + std::string(100000, ']') + "}"),
            400);
  EXPECT_EQ(status("{\"prompt\":\"A\"}", "text/plain"), 415);
  EXPECT_EQ(status("{\"prompt\":\"A\"}", "application/x-www-form-urlencoded"), 415);
  EXPECT_EQ(status("{\"prompt\":\"A\"}", ""), 415);
  Request half = Inside::post("/v1/completions", {});
  half.headers["content-type"] = "Application/JSON; charset=utf-8";
  half.body = "{\"prompt\":\"a \\ud83d b\",\"max_tokens\":4,\"temperature\":0}";
  EXPECT_EQ(inside.ask(half)->json()["choices"][0]["text"], text_alone("a \xEF\xBF\xBD b", 4));
}

TEST(CompletionsTest, AFaultIsOfItsRequestAlone) {
  const mamba::LanguageModel poisoned = mamba::testing::poisoned_model(256, 'Z');
  Inside inside(poisoned);
  const auto answer = inside.post_to("/v1/completions", {{"prompt", "AZA"}});
  EXPECT_EQ(answer->status(), 500);
  EXPECT_THAT(answer->error(), HasSubstr("finite"));
  EXPECT_EQ(answer->json()["error"]["type"], "server_error");
  const auto streamed = inside.post_to("/v1/completions", {{"prompt", "AZA"}, {"stream", true}});
  ASSERT_EQ(streamed->list().size(), 1u);
  EXPECT_THAT(streamed->list()[0]["error"]["message"], HasSubstr("finite"));
  EXPECT_EQ(inside.post_to("/v1/completions", {{"prompt", "A"}})->status(), 200);
}

TEST(CompletionsTest, AFullQueueIsToldWithItsNumber) {
  EngineOptions engine;
  engine.capacity = 2;
  engine.queue = 3;
  Inside inside(model(), of_bytes, {}, engine);
  const auto answer = inside.post_to("/v1/completions", {{"prompt", "A"}, {"n", 6}});
  EXPECT_EQ(answer->status(), 429);
  EXPECT_THAT(answer->error(), HasSubstr("queue of 3"));
  ASSERT_EQ(answer->whole->headers.size(), 1u);
  EXPECT_EQ(answer->whole->headers[0].first, "Retry-After");
  // All prompts of a request or none.
  const auto several =
      inside.post_to("/v1/completions", {{"prompt", Json::array({"A", "B", "C"})}, {"n", 2}});
  EXPECT_EQ(several->status(), 429);
  EXPECT_EQ(inside.engine().room(), 2);
  EXPECT_EQ(inside.post_to("/v1/completions", {{"prompt", "A"}, {"n", 5}})->status(), 200);
}

TEST(CompletionsTest, ACancelledOneLeavesItsPlace) {
  Inside inside(model());
  auto answer = std::make_shared<Answer>();
  const Cancel cancel = inside.core().handle(
      Inside::post("/v1/completions",
                   {{"prompt", Json::array({"A", "B"})}, {"n", 2}, {"max_tokens", 100000}}),
      answer);
  for (int i = 0; i < 5; ++i) inside.engine().step();
  EXPECT_EQ(inside.engine().counts().running, 4);
  cancel();
  EXPECT_FALSE(inside.engine().step());
  EXPECT_EQ(inside.engine().room(), 8);
}

// ---- chats ----

CoreOptions chatting(const std::string& source) {
  CoreOptions options;
  options.chat.prompt.emplace(source);
  options.chat.variables = {{"eos_token", "<|im_end|>"}};
  return options;
}

const char* chatml =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";
const std::string chat_text =
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n";
const Json chat_messages = Json::array(
    {{{"role", "system"}, {"content", "Be brief."}},
     {{"role", "user"}, {"content", Json::array({{{"type", "text"}, {"text", "Hi"}}})}}});

TEST(ChatTest, WritesAfterTheMessages) {
  Inside inside(model(), of_bytes, {}, {}, chatting(chatml));
  const Json asked{{"messages", chat_messages}, {"max_tokens", 12}, {"temperature", 0}};
  const auto answer = inside.post_to("/v1/chat/completions", asked);
  ASSERT_EQ(answer->status(), 200) << answer->whole->body;
  const Json json = answer->json();
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(json["choices"][0]["message"]["content"], text_alone(chat_text, 12));
  EXPECT_EQ(json["usage"]["prompt_tokens"], chat_text.size());

  const auto streamed = inside.post_to("/v1/chat/completions", with(asked, {{"stream", true}}));
  std::string text;
  const std::vector<Json> events = streamed->list();
  EXPECT_EQ(events.front()["object"], "chat.completion.chunk");
  EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
  for (const Json& event : events) text += event["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(text, text_alone(chat_text, 12));
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");

  const auto odds = inside.post_to("/v1/chat/completions",
                                   with(asked, {{"logprobs", true}, {"top_logprobs", 2}}));
  const Json content = odds->json()["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 12u);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[0]["top_logprobs"][0]["logprob"], content[0]["logprob"]);
  EXPECT_EQ(content[0]["bytes"].size(), 1u);
}

TEST(ChatTest, RefusalsNameTheField) {
  Inside none(model());
  const auto without = none.post_to("/v1/chat/completions", {{"messages", chat_messages}});
  EXPECT_EQ(without->status(), 422);
  EXPECT_EQ(without->error(), "messages: expected a model with a chat template, got none");
  Inside inside(model(), of_bytes, {}, {},
                chatting("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') "
                         "}}{% endif %}A"));
  const auto refused = [&](const Json& body, const char* param, const char* text) {
    const auto answer = inside.post_to("/v1/chat/completions", body);
    ASSERT_EQ(answer->status(), 422) << body;
    EXPECT_EQ(answer->param(), param);
    EXPECT_THAT(answer->error(), HasSubstr(text));
  };
  const Json user = Json::array({{{"role", "user"}, {"content", "A"}}});
  refused({{"messages", chat_messages}}, "messages", "no system");
  refused(Json::object(), "messages", "got none");
  refused({{"messages", Json::array()}}, "messages", "at least one message");
  refused({{"messages", Json::array({1})}}, "messages", "a role and a content");
  refused({{"messages", Json::array({{{"role", "user"}}})}}, "messages", "a role and a content");
  refused({{"messages", Json::array({{{"role", "user"}, {"content", 7}}})}}, "messages", "got 7");
  refused({{"messages", user}, {"tools", Json::array({1})}}, "tools", "expected []");
  refused({{"messages", user}, {"response_format", {{"type", "json_object"}}}}, "response_format",
          "text");
}

// ---- tokens, and what the server says of itself ----

TEST(CoreTest, TokensAndBack) {
  Inside inside(model());
  const auto tokens = inside.post_to("/tokenize", {{"text", "h\xC3\xA9"}});
  EXPECT_EQ(tokens->json()["tokens"], Json({104, 195, 169}));
  EXPECT_EQ(tokens->json()["texts"], Json({"h", "", "\xC3\xA9"}));
  EXPECT_EQ(tokens->json()["count"], 3);
  const auto text = inside.post_to("/detokenize", {{"tokens", {104, 195, 169}}});
  EXPECT_EQ(text->json()["text"], "h\xC3\xA9");
  EXPECT_EQ(inside.post_to("/detokenize", {{"tokens", {104, 195}}})->json()["text"],
            "h\xEF\xBF\xBD");
  EXPECT_EQ(inside.post_to("/detokenize", {{"tokens", {-1}}})->status(), 422);
  EXPECT_EQ(inside.post_to("/tokenize", Json::object())->status(), 422);
}

TEST(CoreTest, SaysWhatItIs) {
  CoreOptions options;
  options.page = "<p>";
  options.page_policy = "default-src 'self'";
  Inside inside(model(), of_bytes, {}, {}, options);
  EXPECT_EQ(inside.ask(Inside::get("/health"))->json()["status"], "ok");
  const Json models = inside.ask(Inside::get("/v1/models"))->json();
  EXPECT_EQ(models["data"][0]["id"], "bytes");
  EXPECT_EQ(models["data"][0]["fingerprint"], model().fingerprint());
  const auto page = inside.ask(Inside::get("/"));
  EXPECT_EQ(page->whole->body, "<p>");
  EXPECT_EQ(page->whole->headers.front(),
            std::make_pair(std::string("Content-Security-Policy"), options.page_policy));
  EXPECT_EQ(inside.ask(Inside::get("/nothing"))->status(), 404);
  EXPECT_EQ(inside.ask(Inside::get("/v1/completions"))->status(), 405);
  EXPECT_EQ(inside.ask(Inside::get("/health", "BREW"))->status(), 405);
  inside.core().drain();
  EXPECT_EQ(inside.ask(Inside::get("/health"))->json()["status"], "ending");
  EXPECT_EQ(inside.post_to("/v1/completions", {{"prompt", "A"}})->status(), 503);
}

TEST(CoreTest, MetricsCount) {
  Inside inside(model());
  inside.post_to("/v1/completions", {{"prompt", "The state"}, {"max_tokens", 5}, {"n", 2}});
  inside.post_to("/v1/completions", {{"prompt", "The state"}, {"max_tokens", 5}});
  inside.core().metrics().request(200);
  const std::string text = inside.ask(Inside::get("/metrics"))->whole->body;
  for (const char* line :
       {"mamba_requests_total{status=\"200\"} 1\n", "mamba_tokens_read_total 9\n",
        "mamba_tokens_known_total 9\n", "mamba_tokens_written_total 15\n",
        "mamba_cache_hits_total 1\n", "mamba_rows_in_use 0\n", "mamba_states 0\n",
        "mamba_time_to_first_token_seconds_count 2\n", "mamba_text_tokens_per_second_count 3\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(CoreTest, OnlyOwnPagesAndOwnNamesMayAsk) {
  CoreOptions options;
  options.hosts = {"my.host"};
  options.origins = {"https://good.example"};
  options.api_keys = {"one", "two"};
  Inside inside(model(), of_bytes, {}, {}, options);
  const auto status = [&](const std::string& path,
                          const std::map<std::string, std::string>& headers,
                          const char* method = "GET", bool local = false) {
    Request request = Inside::get(path, method);
    request.headers = headers;
    request.local = local;
    return inside.ask(request)->status();
  };
  const std::string key = "Bearer two";
  EXPECT_EQ(status("/v1/models", {{"host", "localhost:8080"}, {"authorization", key}}), 200);
  EXPECT_EQ(status("/v1/models", {{"host", "127.0.0.1:8080"}, {"authorization", key}}), 200);
  EXPECT_EQ(status("/v1/models", {{"host", "[::1]:8080"}, {"authorization", key}}), 200);
  EXPECT_EQ(status("/v1/models", {{"host", "my.host"}, {"authorization", key}}), 200);
  EXPECT_EQ(status("/v1/models", {{"host", "evil.example"}, {"authorization", key}}), 403);
  EXPECT_EQ(status("/v1/models", {{"authorization", key}}), 403);
  EXPECT_EQ(status("/v1/models", {{"authorization", key}}, "GET", /*local=*/true), 200);
  const auto from = [&](const std::string& origin, const char* method = "GET") {
    return status("/v1/models",
                  {{"host", "localhost:80"}, {"authorization", key}, {"origin", origin}}, method);
  };
  EXPECT_EQ(from("http://localhost:80"), 200);
  EXPECT_EQ(from("https://good.example"), 200);
  EXPECT_EQ(from("https://evil.example"), 403);
  EXPECT_EQ(from("null"), 403);
  EXPECT_EQ(from("https://good.example", "OPTIONS"), 204);
  EXPECT_EQ(from("https://evil.example", "OPTIONS"), 403);
  for (const char* wrong : {"", "Bearer ", "Bearer on", "Bearer onetwo", "one", "bearer one"}) {
    EXPECT_EQ(status("/v1/models", {{"host", "localhost"}, {"authorization", wrong}}), 401)
        << wrong;
  }
  EXPECT_EQ(status("/health", {{"host", "localhost"}}), 200);
  EXPECT_EQ(status("/metrics", {{"host", "localhost"}}), 401);

  Request good = Inside::get("/health");
  good.headers["origin"] = "https://good.example";
  EXPECT_EQ(inside.core().cross_origin(good).front().second, "https://good.example");
  EXPECT_TRUE(Inside(model()).core().cross_origin(good).empty());
}

}  // namespace
}  // namespace server
