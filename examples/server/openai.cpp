#include "openai.hpp"

#include <algorithm>
#include <ctime>
#include <utility>

#include "../programs/whole_text.hpp"
#include "body.hpp"
#include "call.hpp"

namespace server {

namespace {

constexpr int most_choices = 128;
constexpr int most_top = 20;                // log-probabilities in each place
constexpr std::int64_t chat_tokens = 1024;  // unless it is said how many

struct Asked {
  bool chat = false, stream = false, include_usage = false, echo = false, log_probs = false;
  int n = 1;
  std::vector<Job> jobs;  // one for each prompt
};

bool is_utf8(const std::string& bytes) {
  mamba::TextStream stream;
  return stream.push(bytes) + stream.finish() == bytes;
}

std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

// A token as OpenAI writes one that is part of a character: "bytes:\xe4".
std::string token_text(const std::string& bytes) {
  if (is_utf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += std::string("\\x") + "0123456789abcdef"[byte >> 4] + "0123456789abcdef"[byte & 15];
  }
  return text;
}

// ---- log-probabilities -------------------------------------------------------------------------

// Of the tokens of a piece of text, in either form.
class Odds {
 public:
  Odds(const mamba::Tokenizer& tokenizer, bool chat) : tokenizer_(&tokenizer), chat_(chat) {
    json_ = chat ? Json{{"content", Json::array()}, {"refusal", nullptr}}
                 : Json{{"tokens", Json::array()},
                        {"token_logprobs", Json::array()},
                        {"top_logprobs", Json::array()},
                        {"text_offset", Json::array()}};
  }

  // `odds` is absent for what comes after nothing. `offset`: characters of the text before it.
  void add(std::int32_t id, const mamba::LogProbs* odds, std::size_t offset) {
    if (chat_) {
      Json one = part(id, odds != nullptr ? odds->chosen : 0);
      one["top_logprobs"] = Json::array();
      if (odds != nullptr) {
        for (const auto& top : odds->top) {
          one["top_logprobs"].push_back(part(top.token, top.log_prob));
        }
      }
      json_["content"].push_back(std::move(one));
      return;
    }
    json_["tokens"].push_back(token_text(tokenizer_->decode({id})));
    json_["token_logprobs"].push_back(odds != nullptr ? Json(odds->chosen) : Json());
    Json tops;
    if (odds != nullptr) {
      tops = Json::object();
      for (const auto& top : odds->top) {
        tops[token_text(tokenizer_->decode({top.token}))] = top.log_prob;
      }
    }
    json_["top_logprobs"].push_back(std::move(tops));
    json_["text_offset"].push_back(offset);
  }

  const Json& json() const { return json_; }

 private:
  Json part(std::int32_t id, float log_prob) const {
    const std::string bytes = tokenizer_->decode({id});
    Json list = Json::array();
    for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
    return {{"token", token_text(bytes)}, {"logprob", log_prob}, {"bytes", std::move(list)}};
  }

  const mamba::Tokenizer* tokenizer_;
  bool chat_;
  Json json_;
};

// ---- a call ------------------------------------------------------------------------------------

class OpenAiCall : public Call {
 public:
  OpenAiCall(Core& core, const Request& request, std::shared_ptr<Reply> reply, Asked asked)
      : Call(core, request.account, std::move(reply)), asked_(std::move(asked)) {
    for (const Job& job : asked_.jobs) {
      prompts_.push_back(job.prompt);
      for (int i = 0; i < asked_.n; ++i)
        choices_.emplace_back(core.engine().tokenizer(), asked_.chat);
    }
    left_ = choices_.size();
    const Json head{
        {"id", core.new_name(asked_.chat ? "chatcmpl-" : "cmpl-")},
        {"object", asked_.chat ? (asked_.stream ? "chat.completion.chunk" : "chat.completion")
                               : "text_completion"},
        {"created", std::time(nullptr)},
        {"model", core.options().model}};
    head_ = text_of(head);
    head_.pop_back();  // its end: more follows
  }

  Cancel start() {
    std::vector<Job> jobs = std::move(asked_.jobs);
    asked_.jobs.clear();
    return submit(std::move(jobs));
  }

 private:
  struct Choice {
    Choice(const mamba::Tokenizer& tokenizer, bool chat) : odds(tokenizer, chat) {}
    std::string text;
    Odds odds;
    std::size_t offset = 0;  // characters of the tokens so far
    const char* reason = nullptr;
  };

  Choice& at(int choice) { return choices_[static_cast<std::size_t>(choice)]; }

  void read(int prompt, const PromptRead& told) override {
    cached_ += told.known;
    if (asked_.chat) {
      for (int i = 0; asked_.stream && i < asked_.n; ++i) {
        send_chunk(prompt * asked_.n + i, R"({"role":"assistant","content":""})", "null", nullptr);
      }
      return;
    }
    if (!asked_.echo) return;
    const mamba::Tokenizer& tokenizer = core().engine().tokenizer();
    const Ids& ids = prompts_[static_cast<std::size_t>(prompt)];
    const std::string text = whole_text(tokenizer, ids);
    for (int i = 0; i < asked_.n; ++i) {
      Choice& choice = at(prompt * asked_.n + i);
      Odds odds(tokenizer, false);
      for (std::size_t k = 0; asked_.log_probs && k < ids.size(); ++k) {
        const mamba::LogProbs* own = k == 0 ? nullptr : &told.scores[k - 1];
        odds.add(ids[k], own, choice.offset);
        choice.offset += characters(tokenizer.decode({ids[k]}));
      }
      if (asked_.stream) {
        send_chunk(prompt * asked_.n + i, json_string(text),
                   asked_.log_probs ? text_of(odds.json()) : "null", nullptr);
      } else {
        choice.text = text;
        choice.odds = std::move(odds);
      }
    }
  }

  void token(int index, Token token) override {
    Choice& choice = at(index);
    ++written_;
    if (!asked_.log_probs) {
      if (asked_.stream && !token.text.empty()) send_text(index, token.text, "null", nullptr);
      if (!asked_.stream) choice.text += token.text;
      return;
    }
    const mamba::Tokenizer& tokenizer = core().engine().tokenizer();
    Odds own(tokenizer, asked_.chat);
    Odds& odds = asked_.stream ? own : choice.odds;
    odds.add(token.id, &*token.log_probs, choice.offset);
    choice.offset += characters(tokenizer.decode({token.id}));
    choice.text += token.text;
    if (asked_.stream) send_text(index, token.text, text_of(odds.json()), nullptr);
  }

  void finished(int index, Finished end) override {
    Choice& choice = at(index);
    choice.reason = reason_of(end.reason);
    if (asked_.stream) {
      if (asked_.chat) {
        if (!end.text.empty()) send_text(index, end.text, "null", nullptr);
        send_chunk(index, "{}", "null", choice.reason);
      } else {
        send_chunk(index, json_string(end.text), "null", choice.reason);
      }
    } else {
      choice.text += end.text;
    }
    one_less();
  }

  void failed(int, const std::string& why) override {
    const ApiError error(500, why);
    if (asked_.stream) {
      write("data: " + error.json() + "\n\n");
    } else {
      error_ = error.response();
    }
    one_less();
  }

  void one_less() {
    if (--left_ > 0) return;
    if (asked_.stream) {
      if (asked_.include_usage) {
        write("data: " + head_ + R"(,"choices":[],"usage":)" + usage() + "}\n\n");
      }
      write("data: [DONE]\n\n");
      reply().end();
    } else if (error_) {
      reply().send(*error_);
    } else {
      send_all();
    }
  }

  std::string usage() const {
    std::int64_t read = 0;
    for (const Ids& prompt : prompts_) read += static_cast<std::int64_t>(prompt.size());
    return text_of({{"prompt_tokens", read},
                    {"completion_tokens", written_},
                    {"total_tokens", read + written_},
                    {"prompt_tokens_details", {{"cached_tokens", cached_}}}});
  }

  void send_all() {
    std::string body = head_ + R"(,"choices":[)";
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      const Choice& choice = choices_[i];
      const std::string odds = asked_.log_probs ? text_of(choice.odds.json()) : "null";
      body += (i > 0 ? ",{\"index\":" : "{\"index\":") + std::to_string(i) + ",";
      body += asked_.chat ? R"("message":{"role":"assistant","refusal":null,"content":)" +
                                json_string(choice.text) + "}"
                          : "\"text\":" + json_string(choice.text);
      body += ",\"logprobs\":" + odds + ",\"finish_reason\":\"" + choice.reason + "\"}";
    }
    Response response;
    response.body = body + "],\"usage\":" + usage() + "}";
    reply().send(std::move(response));
  }

  void send_text(int index, const std::string& text, const std::string& odds, const char* reason) {
    send_chunk(index, asked_.chat ? "{\"content\":" + json_string(text) + "}" : json_string(text),
               odds, reason);
  }

  // `content`: the text, or the change of a chat's message, as JSON.
  void send_chunk(int index, const std::string& content, const std::string& odds,
                  const char* reason) {
    std::string event = "data: ";
    event += head_;
    event += R"(,"choices":[{"index":)";
    event += std::to_string(index);
    event += asked_.chat ? ",\"delta\":" : ",\"text\":";
    event += content;
    event += ",\"logprobs\":";
    event += odds;
    event += ",\"finish_reason\":";
    event += reason != nullptr ? "\"" + std::string(reason) + "\"" : "null";
    event += asked_.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n";
    write(std::move(event));
  }

  void write(std::string events) {
    if (!std::exchange(begun_, true)) reply().begin();
    reply().write(std::move(events));
  }

  Asked asked_;
  std::vector<Ids> prompts_;
  std::vector<Choice> choices_;
  std::string head_;
  std::size_t left_ = 0;
  std::int64_t written_ = 0, cached_ = 0;
  bool begun_ = false;
  std::optional<Response> error_;
};

// ---- what is asked -----------------------------------------------------------------------------

void read_stream(const Body& body, Asked& asked) {
  body.read("stream", asked.stream);
  body.with("stream_options", [&](const Json& json) {
    if (!json.is_object()) refuse("an object", json);
    const auto usage = json.find("include_usage");
    if (usage != json.end() && !usage->is_null()) read_value(*usage, asked.include_usage);
  });
  asked.include_usage = asked.include_usage && asked.stream;
}

// What would silently be something else.
void refuse_the_rest(const Body& body) {
  for (const char* field : {"presence_penalty", "frequency_penalty"}) {
    body.with(field, [](const Json& json) {
      float value = 0;
      read_value(json, value);
      if (value != 0) refuse("0 (repetition_penalty is another way), or nothing", json);
    });
  }
}

std::vector<Ids> prompts_of(Core& core, const Body& body) {
  const mamba::Tokenizer& tokenizer = core.engine().tokenizer();
  std::vector<Ids> prompts;
  body.with("prompt", [&](const Json& json) {
    const auto one = [&](const Json& value) {
      Ids ids;
      if (value.is_string()) {
        ids = tokenizer.encode(value.get_ref<const std::string&>());
        for (const std::int32_t id : ids) {
          if (id >= core.vocab()) refuse("a text whose tokens the model has", value);
        }
      } else {
        ids = ids_of(value, core.vocab());
      }
      if (ids.empty()) refuse("at least one token", value);
      prompts.push_back(std::move(ids));
    };
    if (json.is_string() || is_ids(json)) return one(json);
    if (!json.is_array()) refuse("a text, a list of texts, or token ids", json);
    if (json.size() > most_choices) refuse("at most 128 prompts", json.size());
    for (const Json& value : json) one(value);
  });
  if (prompts.empty()) {
    throw ApiError(422, "prompt: expected a text, a list of texts, or token ids, got none",
                   "prompt");
  }
  return prompts;
}

void check_number(const Asked& asked) {
  if (asked.n * static_cast<int>(asked.jobs.size()) <= most_choices) return;
  throw ApiError(
      422, "n: expected at most " + std::to_string(most_choices) + " choices of all prompts", "n");
}

Cancel start(Core& core, const Request& request, const std::shared_ptr<Reply>& reply, Asked asked) {
  return std::make_shared<OpenAiCall>(core, request, reply, std::move(asked))->start();
}

// ---- chats -------------------------------------------------------------------------------------

std::string content_of(const Json& content) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse("a text, or a list of parts", content);
  std::string text;
  for (const Json& part : content) {
    if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      refuse("parts of type text", part);
    }
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

Json messages_of(const Json& list) {
  if (!list.is_array() || list.empty()) refuse("a list of at least one message", list);
  Json messages = Json::array();
  for (const Json& message : list) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      refuse("messages with a role and a content", message);
    }
    if (!message.contains("content")) refuse("messages with a role and a content", message);
    messages.push_back({{"role", message["role"]}, {"content", content_of(message["content"])}});
  }
  return messages;
}

Ids chat_prompt(Core& core, const Body& body) {
  const CoreOptions& options = core.options();
  if (!options.chat.prompt) {
    throw ApiError(422,
                   "messages: expected a model with a chat template, got " + options.chat.why_not,
                   "messages");
  }
  if (!body.has("messages")) {
    throw ApiError(422, "messages: expected a list of messages, got none", "messages");
  }
  Ids prompt;
  body.with("messages", [&](const Json& list) {
    Json variables = options.chat.variables;
    variables["messages"] = messages_of(list);
    variables["add_generation_prompt"] = true;
    prompt = core.engine().tokenizer().encode(options.chat.prompt->render(variables), false);
    if (prompt.empty()) refuse("messages of at least one token", list);
    for (const std::int32_t id : prompt) {
      if (id >= core.vocab()) refuse("messages whose tokens the model has", id);
    }
  });
  return prompt;
}

}  // namespace

Cancel complete(Core& core, const Request& request, const std::shared_ptr<Reply>& reply) {
  const Body body(request);
  Asked asked;
  Job job;
  read_writing(body, core.limits(), {"max_tokens"}, core.random_seed(), job);
  body.read("n", asked.n, 1, most_choices);
  read_stream(body, asked);
  body.read("echo", asked.echo);
  int top = 0;
  asked.log_probs = body.read("logprobs", top, 0, most_top);
  if (asked.log_probs) job.log_probs = top;
  job.score_prompt = asked.echo && asked.log_probs;
  body.only("best_of", asked.n);
  body.only("suffix", "");
  refuse_the_rest(body);
  job.choices = asked.n;
  for (Ids& prompt : prompts_of(core, body)) {
    asked.jobs.push_back(job);
    asked.jobs.back().prompt = std::move(prompt);
  }
  check_number(asked);
  return start(core, request, reply, std::move(asked));
}

Cancel chat(Core& core, const Request& request, const std::shared_ptr<Reply>& reply) {
  const Body body(request);
  Asked asked;
  asked.chat = true;
  Job job;
  job.max_tokens = chat_tokens;
  read_writing(body, core.limits(), {"max_completion_tokens", "max_tokens"}, core.random_seed(),
               job);
  body.read("n", asked.n, 1, most_choices);
  read_stream(body, asked);
  body.read("logprobs", asked.log_probs);
  int top = 0;
  body.read("top_logprobs", top, 0, most_top);
  if (asked.log_probs) job.log_probs = top;
  refuse_the_rest(body);
  body.only("tools", Json::array());
  body.only("functions", Json::array());
  body.only("response_format", {{"type", "text"}});
  job.choices = asked.n;
  job.prompt = chat_prompt(core, body);
  const Json eos = core.options().chat.variables.value("eos_token", Json());
  if (eos.is_string() && !eos.get_ref<const std::string&>().empty()) job.stop.push_back(eos);
  asked.jobs.push_back(std::move(job));
  return start(core, request, reply, std::move(asked));
}

}  // namespace server
