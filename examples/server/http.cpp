#include "http.hpp"

#include <cctype>

#include "fields.hpp"

namespace server {

namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

}  // namespace

std::string ApiError::json() const {
  const Json param = param_.empty() ? Json() : Json(param_);
  return text_of(
      {{"error",
        {{"message", what()}, {"type", type_of(status_)}, {"param", param}, {"code", nullptr}}}});
}

Response ApiError::response() const {
  Response response;
  response.status = status_;
  response.body = json();
  response.headers = headers_;
  return response;
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string json_string(const std::string& text) {
  std::string result = "\"";
  bool plain = true;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    plain = plain && byte >= 0x20 && byte < 0x80 && c != '"' && c != '\\';
  }
  if (!plain) return text_of(text);
  return result + text + "\"";
}

}  // namespace server
