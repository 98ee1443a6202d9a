#include "host/json.hpp"

#include <fmt/format.h>

#include <set>
#include <vector>

#include <mamba/error.hpp>

namespace mamba {
namespace {

constexpr int deepest = 64;

// Follows the parser and refuses what it would let pass: it keeps the last of two equal keys.
template <class Json>
class Watcher {
 public:
  Watcher(const std::string& where, const std::string& name) : where_(where), name_(name) {}

  bool operator()(int depth, typename Json::parse_event_t event, const Json& parsed) {
    using Event = typename Json::parse_event_t;
    if (depth > deepest) {
      throw FormatError(where_, name_, fmt::format("at most {} levels", deepest), "more");
    }
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.template get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        throw FormatError(where_, in_quotes(key), "a key given once", "it twice");
      }
    }
    return true;
  }

 private:
  const std::string& where_;
  const std::string& name_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

template <class Json>
Json parse(std::string_view text, const std::string& where, const std::string& name) {
  // The parser takes a NUL for the end and would not look at what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw FormatError(where, name, "text", fmt::format("a NUL at byte {}", nul));
  }
  try {
    Watcher<Json> watcher(where, name);
    return Json::parse(text.begin(), text.end(),
                       [&](int depth, typename Json::parse_event_t event, Json& parsed) {
                         return watcher(depth, event, parsed);
                       });
  } catch (const typename Json::parse_error& error) {
    throw FormatError(where, name, "valid JSON", fmt::format("an error at byte {}", error.byte));
  } catch (const typename Json::out_of_range&) {
    throw FormatError(where, name, "numbers that fit a double", "a larger one");
  }
}

template <class Json>
std::string description(const Json& value) {
  if (value.is_string()) return in_quotes(value.template get_ref<const std::string&>());
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return value.dump();
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, const std::string& name) {
  return parse<Json>(text, where, name);
}

SortedJson parse_sorted_json(std::string_view text, const std::string& where) {
  return parse<SortedJson>(text, where, "JSON");
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 100;
  const bool cut = text.size() > longest;
  const Json value = std::string(text.substr(0, longest));
  return value.dump(-1, ' ', false, Json::error_handler_t::replace) + (cut ? "..." : "");
}

std::string describe(const Json& value) { return description(value); }
std::string describe(const SortedJson& value) { return description(value); }

}  // namespace mamba
