// Messages of a chat as the one text that a model has learnt to answer.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fields.hpp"

namespace server {

// The part of Jinja that ChatML and plain loops over messages are written in: text; for, if, elif,
// else and set; texts, whole numbers and names with [...] and .name; == != and or not in + ~ - %;
// "is defined" and "is none"; trim, upper, lower and length; raise_exception; loop.first, last,
// index, index0. Anything else is refused when the template is read, by its name.
class ChatTemplate {
 public:
  // Throws std::invalid_argument: what the template has that is not known here.
  explicit ChatTemplate(const std::string& source);

  // `variables`: messages, add_generation_prompt, and what else the template may ask for. Throws
  // std::invalid_argument where the template refuses them, or asks for what they do not have.
  std::string render(const Json& variables) const;

  // A value, or a part of one, that nobody copies: a loop looks into all messages again and again.
  class Ref {
   public:
    Ref(Json value) : value_(std::make_shared<const Json>(std::move(value))) {}
    Ref(const Ref& whole, const Json& part) : value_(whole.value_, &part) {}
    const Json& operator*() const { return *value_; }
    const Json* operator->() const { return value_.get(); }
    operator const Json&() const { return *value_; }

   private:
    std::shared_ptr<const Json> value_;
  };
  using Scope = std::map<std::string, Ref>;
  using Value = std::function<Ref(const Scope&)>;
  struct Node;
  using Nodes = std::vector<std::shared_ptr<const Node>>;

 private:
  Nodes nodes_;
};

// What a model's folder says of chats: in chat_template.jinja or tokenizer_config.json.
struct Chat {
  std::optional<ChatTemplate> prompt;
  std::string why_not = "none";     // where there is no template that can be done here
  Json variables = Json::object();  // bos_token, eos_token
};
Chat load_chat(const std::string& folder);

}  // namespace server
