#include "chat_template.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <utility>

namespace server {

using Scope = ChatTemplate::Scope;
using Value = ChatTemplate::Value;
using Nodes = ChatTemplate::Nodes;
using Ref = ChatTemplate::Ref;

struct ChatTemplate::Node {
  enum class Kind { text, output, choice, loop, set } kind = Kind::text;
  std::string text;  // or the name that a loop or set gives
  Value value;
  std::vector<std::pair<Value, Nodes>> branches;  // of a choice; no value: else
  Nodes body;                                     // of a loop
};

namespace {

using Node = ChatTemplate::Node;
constexpr std::size_t most_bytes = std::size_t{16} << 20;  // of a text that is rendered

[[noreturn]] void unknown(const std::string& what) {
  throw std::invalid_argument("chat template: expected ChatML or a plain loop over messages, got " +
                              what);
}

// ---- values ------------------------------------------------------------------------------------

bool truth(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.is_null() && !value.empty();
}

const std::string& text_in(const Json& value) {
  if (!value.is_string()) {
    throw std::invalid_argument("chat template: expected a text, got " + text_of(value));
  }
  return value.get_ref<const std::string&>();
}

std::int64_t number_in(const Json& value) {
  if (!value.is_number_integer()) {
    throw std::invalid_argument("chat template: expected a whole number, got " + text_of(value));
  }
  return value.get<std::int64_t>();
}

// null where there is none.
Ref member(const Ref& of, const Json& key) {
  if (of->is_object() && key.is_string()) {
    const auto found = of->find(key.get_ref<const std::string&>());
    return found == of->end() ? Ref(Json()) : Ref(of, *found);
  }
  if (of->is_array() && key.is_number_integer()) {
    const auto size = static_cast<std::int64_t>(of->size());
    const std::int64_t index = key.get<std::int64_t>() + (key.get<std::int64_t>() < 0 ? size : 0);
    if (index >= 0 && index < size) return Ref(of, (*of)[static_cast<std::size_t>(index)]);
  }
  return Json();
}

std::string trimmed(const std::string& text) {
  const char* space = " \t\r\n\f\v";
  const std::size_t first = text.find_first_not_of(space);
  return first == std::string::npos ? std::string()
                                    : text.substr(first, text.find_last_not_of(space) - first + 1);
}

// The letters of ASCII alone.
std::string cased(std::string text, bool upper) {
  const char first = upper ? 'a' : 'A';
  for (char& c : text) {
    if (c >= first && c <= first + 25) c = static_cast<char>(c ^ 0x20);
  }
  return text;
}

// ---- expressions -------------------------------------------------------------------------------

class Expression {
 public:
  explicit Expression(std::string source) : source_(std::move(source)) { next(); }

  Value whole() {
    Value value = either();
    end();
    return value;
  }
  std::string name() {
    if (kind_ != Kind::name) unknown("'" + source_ + "'");
    return take();
  }
  void word(const char* expected) {
    if (!accept(expected)) unknown("'" + source_ + "'");
  }
  void end() const {
    if (kind_ != Kind::end) unknown("'" + token_ + "' in '" + source_ + "'");
  }

 private:
  enum class Kind { name, text, number, sign, end };

  void next() {
    while (at_ < source_.size() && std::isspace(static_cast<unsigned char>(source_[at_]))) ++at_;
    token_.clear();
    if (at_ == source_.size()) {
      kind_ = Kind::end;
      return;
    }
    const char c = source_[at_];
    const auto is = [&](int (*test)(int)) {
      return at_ < source_.size() && test(static_cast<unsigned char>(source_[at_])) != 0;
    };
    if (c == '\'' || c == '"') {
      kind_ = Kind::text;
      read_text(c);
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      kind_ = Kind::number;
      while (is(std::isdigit)) token_ += source_[at_++];
      if (token_.size() > 9) unknown("the number " + token_);
    } else if (std::isalpha(static_cast<unsigned char>(c)) || c == '_') {
      kind_ = Kind::name;
      while (is(std::isalnum) || (at_ < source_.size() && source_[at_] == '_')) {
        token_ += source_[at_++];
      }
    } else {
      kind_ = Kind::sign;
      const std::string two = source_.substr(at_, 2);
      token_ = two == "==" || two == "!=" ? two : std::string(1, c);
      at_ += token_.size();
    }
  }

  void read_text(char quote) {
    for (++at_; at_ < source_.size() && source_[at_] != quote; ++at_) {
      if (source_[at_] != '\\') {
        token_ += source_[at_];
        continue;
      }
      if (++at_ == source_.size()) break;
      const char c = source_[at_];
      const std::string plain = "\\'\"";
      if (c == 'n') {
        token_ += '\n';
      } else if (c == 't') {
        token_ += '\t';
      } else if (c == 'r') {
        token_ += '\r';
      } else if (plain.find(c) != std::string::npos) {
        token_ += c;
      } else {
        unknown(std::string("\\") + c);
      }
    }
    if (at_ == source_.size()) unknown("a text without an end");
    ++at_;
  }

  std::string take() {
    std::string token = std::move(token_);
    next();
    return token;
  }
  bool is(const char* token) const {
    return (kind_ == Kind::name || kind_ == Kind::sign) && token_ == token;
  }
  bool accept(const char* token) {
    if (!is(token)) return false;
    next();
    return true;
  }

  // Brackets and words before a value nest: as deep as any template that somebody has written.
  struct Depth {
    explicit Depth(int& of) : depth(of) {
      if (++depth > 64) unknown("more than 64 levels of an expression");
    }
    ~Depth() { --depth; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    int& depth;
  };

  Value either() {
    const Depth deeper(depth_);
    Value left = both();
    while (accept("or")) {
      left = [a = std::move(left), b = both()](const Scope& scope) -> Ref {
        const Ref value = a(scope);
        return truth(value) ? value : b(scope);
      };
    }
    return left;
  }

  Value both() {
    Value left = negated();
    while (accept("and")) {
      left = [a = std::move(left), b = negated()](const Scope& scope) -> Ref {
        const Ref value = a(scope);
        return truth(value) ? b(scope) : value;
      };
    }
    return left;
  }

  Value negated() {
    if (!accept("not")) return compared();
    const Depth deeper(depth_);
    return [a = negated()](const Scope& scope) -> Ref { return Json(!truth(a(scope))); };
  }

  Value compared() {
    Value left = sum();
    while (true) {
      if (accept("==")) {
        left = [a = std::move(left), b = sum()](const Scope& scope) -> Ref {
          return Json(*a(scope) == *b(scope));
        };
      } else if (accept("!=")) {
        left = [a = std::move(left), b = sum()](const Scope& scope) -> Ref {
          return Json(*a(scope) != *b(scope));
        };
      } else if (accept("in")) {
        left = contained(std::move(left), sum());
      } else if (is("not")) {
        next();
        word("in");
        left = [in = contained(std::move(left), sum())](const Scope& scope) -> Ref {
          return Json(!truth(in(scope)));
        };
      } else if (accept("is")) {
        const bool positive = !accept("not");
        const std::string test = name();
        if (test != "defined" && test != "none" && test != "undefined") unknown("is " + test);
        left = [a = std::move(left), wanted = positive == (test == "defined")](
                   const Scope& scope) -> Ref { return Json(a(scope)->is_null() != wanted); };
      } else {
        return left;
      }
    }
  }

  static Value contained(Value what, Value in) {
    return [a = std::move(what), b = std::move(in)](const Scope& scope) -> Ref {
      const Ref value = a(scope);
      const Ref all = b(scope);
      if (all->is_string()) return Json(text_in(all).find(text_in(value)) != std::string::npos);
      if (all->is_object()) return Json(all->contains(text_in(value)));
      return Json(std::find(all->begin(), all->end(), *value) != all->end());
    };
  }

  Value sum() {
    Value left = rest();
    while (is("+") || is("~") || is("-")) {
      const std::string sign = take();
      left = [a = std::move(left), b = rest(), sign](const Scope& scope) -> Ref {
        const Ref x = a(scope);
        const Ref y = b(scope);
        if (sign == "-") return Json(number_in(x) - number_in(y));
        if (sign == "+" && x->is_number()) return Json(number_in(x) + number_in(y));
        return Json(text_in(x) + text_in(y));
      };
    }
    return left;
  }

  Value rest() {
    Value left = filtered();
    while (accept("%")) {
      left = [a = std::move(left), b = filtered()](const Scope& scope) -> Ref {
        const std::int64_t by = number_in(b(scope));
        if (by <= 0) throw std::invalid_argument("chat template: expected % by 1 and more");
        return Json(number_in(a(scope)) % by);
      };
    }
    return left;
  }

  Value filtered() {
    Value value = part();
    while (accept("|")) {
      const std::string filter = name();
      if (filter != "trim" && filter != "upper" && filter != "lower" && filter != "length") {
        unknown("the filter " + filter);
      }
      value = [a = std::move(value), filter](const Scope& scope) -> Ref {
        const Ref whole = a(scope);
        if (filter == "length") {
          return Json(whole->is_string() ? text_in(whole).size() : whole->size());
        }
        const std::string& text = text_in(whole);
        if (filter == "trim") return Json(trimmed(text));
        return Json(cased(text, filter == "upper"));
      };
    }
    return value;
  }

  Value part() {
    Value value = atom();
    while (true) {
      if (accept(".")) {
        const std::string key = name();
        if (is("(")) unknown("." + key + "()");
        value = [a = std::move(value), key](const Scope& scope) -> Ref {
          return member(a(scope), key);
        };
      } else if (accept("[")) {
        value = [a = std::move(value), key = either()](const Scope& scope) -> Ref {
          return member(a(scope), key(scope));
        };
        word("]");
      } else {
        return value;
      }
    }
  }

  Value atom() {
    if (kind_ == Kind::text) return [text = take()](const Scope&) -> Ref { return Json(text); };
    if (kind_ == Kind::number) {
      return [number = std::stoll(take())](const Scope&) -> Ref { return Json(number); };
    }
    if (accept("(")) {
      Value value = either();
      word(")");
      return value;
    }
    if (accept("-")) {
      const Depth deeper(depth_);
      return [a = atom()](const Scope& scope) -> Ref { return Json(-number_in(a(scope))); };
    }
    const std::string named = name();
    if (named == "true" || named == "True") return [](const Scope&) -> Ref { return Json(true); };
    if (named == "false" || named == "False")
      return [](const Scope&) -> Ref { return Json(false); };
    if (named == "none" || named == "None") return [](const Scope&) -> Ref { return Json(); };
    if (named == "raise_exception") return refusal();
    if (is("(")) unknown(named + "()");
    return [named](const Scope& scope) -> Ref {
      const auto found = scope.find(named);
      return found == scope.end() ? Ref(Json()) : found->second;
    };
  }

  Value refusal() {
    word("(");
    Value why = either();
    word(")");
    return [why](const Scope& scope) -> Ref { throw std::invalid_argument(text_in(why(scope))); };
  }

  std::string source_;
  std::size_t at_ = 0;
  Kind kind_ = Kind::end;
  std::string token_;
  int depth_ = 0;
};

// ---- templates ---------------------------------------------------------------------------------

struct Piece {
  enum class Kind { text, output, tag } kind = Kind::text;
  std::string source;
};

// As transformers has Jinja do it: a tag takes the spaces before it on its line and the end of the
// line after it; a minus takes all white space on its side.
std::vector<Piece> pieces_of(const std::string& source) {
  std::vector<Piece> pieces;
  const char* space = " \t\r\n\f\v";
  bool strip = false;  // white space at the beginning of the next text
  bool end_of_line = false;
  std::size_t at = 0;
  while (at < source.size()) {
    std::size_t open = source.find('{', at);
    while (open != std::string::npos && open + 1 < source.size() &&
           std::string("{%#").find(source[open + 1]) == std::string::npos) {
      open = source.find('{', open + 1);
    }
    if (open != std::string::npos && open + 1 >= source.size()) open = std::string::npos;
    std::string text = source.substr(at, open == std::string::npos ? open : open - at);
    if (strip) text.erase(0, std::min(text.find_first_not_of(space), text.size()));
    if (!strip && end_of_line && text.rfind('\n', 0) == 0) text.erase(0, 1);
    if (open == std::string::npos) {
      if (!text.empty()) pieces.push_back({Piece::Kind::text, text});
      return pieces;
    }
    const char mark = source[open + 1];
    const bool minus = open + 2 < source.size() && source[open + 2] == '-';
    if (minus) {
      text.erase(text.find_last_not_of(space) + 1);
    } else if (mark != '{') {
      const std::size_t line = text.find_last_not_of(" \t") + 1;
      const bool begins = line == 0 ? at == 0 || end_of_line : text[line - 1] == '\n';
      if (begins) text.erase(line);
    }
    if (!text.empty()) pieces.push_back({Piece::Kind::text, text});
    const std::string closing = std::string(1, mark == '{' ? '}' : mark) + "}";
    const std::size_t close = source.find(closing, open + 2);
    if (close == std::string::npos) unknown("{" + std::string(1, mark) + " without its end");
    std::size_t first = open + (minus ? 3 : 2);
    std::size_t last = close;
    strip = last > first && source[last - 1] == '-';
    if (strip) --last;
    if (mark != '#') {
      pieces.push_back({mark == '{' ? Piece::Kind::output : Piece::Kind::tag,
                        trimmed(source.substr(first, last - std::min(first, last)))});
    }
    end_of_line = mark != '{';
    at = close + 2;
  }
  return pieces;
}

class Reader {
 public:
  explicit Reader(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {}

  Nodes whole() {
    Nodes nodes = block({});
    return nodes;
  }

 private:
  static std::string first_word(const std::string& source) {
    return source.substr(0, source.find_first_of(" \t\n"));
  }
  static std::string after_word(const std::string& source) {
    const std::size_t end = source.find_first_of(" \t\n");
    return end == std::string::npos ? std::string() : source.substr(end);
  }

  // Up to a tag that begins with one of `ends`, which is left; to the end if there are none.
  Nodes block(const std::vector<std::string>& ends) {
    if (++depth_ > 32) unknown("more than 32 levels of blocks");
    Nodes nodes;
    for (; at_ < pieces_.size(); ++at_) {
      const Piece& piece = pieces_[at_];
      auto node = std::make_shared<Node>();
      if (piece.kind == Piece::Kind::text) {
        node->text = piece.source;
      } else if (piece.kind == Piece::Kind::output) {
        node->kind = Node::Kind::output;
        node->value = Expression(piece.source).whole();
      } else {
        const std::string word = first_word(piece.source);
        if (std::find(ends.begin(), ends.end(), word) != ends.end()) {
          --depth_;
          return nodes;
        }
        read_tag(word, after_word(piece.source), *node);
      }
      nodes.push_back(std::move(node));
    }
    if (!ends.empty()) unknown("no " + ends.back());
    --depth_;
    return nodes;
  }

  // Ends at its last tag.
  void read_tag(const std::string& word, const std::string& rest, Node& node) {
    if (word == "if") {
      node.kind = Node::Kind::choice;
      Value condition = Expression(rest).whole();
      while (true) {
        ++at_;
        Nodes body = block({"elif", "else", "endif"});
        node.branches.emplace_back(std::move(condition), std::move(body));
        const std::string& source = pieces_[at_].source;
        if (first_word(source) == "endif") return;
        if (!node.branches.back().first) unknown("a branch after else");
        condition = first_word(source) == "elif" ? Expression(after_word(source)).whole() : Value();
      }
    }
    if (word == "for") {
      node.kind = Node::Kind::loop;
      const std::size_t in = rest.find(" in ");
      if (in == std::string::npos) unknown("for" + rest);
      Expression name(rest.substr(0, in));
      node.text = name.name();
      name.end();
      node.value = Expression(rest.substr(in + 4)).whole();
      ++at_;
      node.body = block({"endfor"});
      return;
    }
    if (word == "set") {
      node.kind = Node::Kind::set;
      const std::size_t equals = rest.find('=');
      if (equals == std::string::npos) unknown("set" + rest);
      Expression name(rest.substr(0, equals));
      node.text = name.name();
      name.end();
      node.value = Expression(rest.substr(equals + 1)).whole();
      return;
    }
    unknown("{% " + word + " %}");
  }

  std::vector<Piece> pieces_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

void render(const Nodes& nodes, Scope& scope, std::string& text);

void render_loop(const Node& node, const Scope& outer, std::string& text) {
  const Ref list = node.value(outer);
  if (!list->is_array()) {
    throw std::invalid_argument("chat template: expected a list to go through, got " +
                                text_of(list));
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    Scope scope = outer;  // what a loop sets is gone after each turn
    scope.insert_or_assign(node.text, Ref(list, (*list)[i]));
    scope.insert_or_assign(
        "loop",
        Json{{"index0", i}, {"index", i + 1}, {"first", i == 0}, {"last", i + 1 == list->size()}});
    render(node.body, scope, text);
  }
}

void render(const Nodes& nodes, Scope& scope, std::string& text) {
  for (const auto& node : nodes) {
    switch (node->kind) {
      case Node::Kind::text:
        text += node->text;
        break;
      case Node::Kind::output: {
        const Ref value = node->value(scope);
        text += value->is_number() ? text_of(value) : text_in(value);
        break;
      }
      case Node::Kind::choice:
        for (const auto& [condition, body] : node->branches) {
          if (condition && !truth(condition(scope))) continue;
          render(body, scope, text);
          break;
        }
        break;
      case Node::Kind::loop:
        render_loop(*node, scope, text);
        break;
      case Node::Kind::set:
        scope.insert_or_assign(node->text, node->value(scope));
        break;
    }
    if (text.size() > most_bytes) throw std::invalid_argument("chat template: expected less text");
  }
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& source) : nodes_(Reader(pieces_of(source)).whole()) {}

std::string ChatTemplate::render(const Json& variables) const {
  Scope scope;
  for (const auto& [name, value] : variables.items()) scope.insert_or_assign(name, Json(value));
  std::string text;
  server::render(nodes_, scope, text);
  return text;
}

// ---- a model's folder --------------------------------------------------------------------------

namespace {

std::optional<std::string> file_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string{std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

Chat load_chat(const std::string& folder) {
  Chat chat;
  std::optional<std::string> source = file_text(folder + "/chat_template.jinja");
  const std::optional<std::string> text = file_text(folder + "/tokenizer_config.json");
  Json config = text ? Json::parse(*text, nullptr, /*allow_exceptions=*/false) : Json();
  if (!config.is_object()) config = Json::object();
  for (const char* name : {"bos_token", "eos_token"}) {
    Json token = config.value(name, Json());
    if (token.is_object()) token = token.value("content", Json());
    if (token.is_string()) chat.variables[name] = token;
  }
  Json given = config.value("chat_template", Json());
  if (given.is_array()) {  // several, by name
    Json chosen;
    for (const Json& one : given) {
      if (one.is_object() && one.value("name", Json()) == "default") {
        chosen = one.value("template", Json());
      }
    }
    given = std::move(chosen);
  }
  if (!source && given.is_string()) source = given.get<std::string>();
  if (!source) return chat;
  try {
    chat.prompt.emplace(*source);
    chat.why_not.clear();
  } catch (const std::invalid_argument& error) {
    chat.why_not = error.what();
  }
  return chat;
}

}  // namespace server
