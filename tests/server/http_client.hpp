// A client of HTTP that sends whatever it is told to.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace server::testing {

struct Got {
  int status = 0;                              // 0: the connection was closed without an answer
  std::map<std::string, std::string> headers;  // in lower case
  std::string body;
  nlohmann::json json() const { return nlohmann::json::parse(body); }
};

class Client {
 public:
  explicit Client(int port) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<std::uint16_t>(port));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    open(reinterpret_cast<const sockaddr*>(&at), sizeof at);
  }
  explicit Client(const std::string& path) : socket_(socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    std::strncpy(at.sun_path, path.c_str(), sizeof at.sun_path - 1);
    open(reinterpret_cast<const sockaddr*>(&at), sizeof at);
  }
  ~Client() { hang_up(); }
  Client(Client&& other) noexcept
      : socket_(std::exchange(other.socket_, -1)), buffer_(std::move(other.buffer_)) {}
  Client& operator=(Client&&) = delete;

  int descriptor() const { return socket_; }
  // Reads an answer with a Content-Length, and keeps none of its body.
  void drop_answer() {
    const Got got = head();
    std::size_t left = std::stoull(got.headers.at("content-length"));
    left -= std::min(left, buffer_.size());
    buffer_.clear();
    std::vector<char> bytes(1 << 20);
    while (left > 0) {
      const ssize_t count = recv(socket_, bytes.data(), std::min(left, bytes.size()), 0);
      if (count <= 0) throw std::runtime_error("an answer without its end");
      left -= static_cast<std::size_t>(count);
    }
  }
  void hang_up() {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
  }
  // Whether all of it went.
  bool send(const std::string& bytes) {
    std::size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t count = ::send(socket_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (count <= 0) return false;
      at += static_cast<std::size_t>(count);
    }
    return true;
  }
  void ask(const std::string& method, const std::string& target, const std::string& body = "",
           const std::string& type = "application/json", const std::string& more = "") {
    std::string text = method + " " + target + " HTTP/1.1\r\nHost: localhost\r\n" + more;
    if (!body.empty()) {
      text +=
          "Content-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
    }
    send(text + "\r\n" + body);
  }
  Got post(const std::string& target, const nlohmann::json& body) {
    ask("POST", target, body.dump());
    return answer();
  }
  Got get(const std::string& target) {
    ask("GET", target);
    return answer();
  }

  // Up to and with `mark`; what is there where the connection ends or nothing comes for long.
  std::string read_to(const std::string& mark) {
    std::size_t from = 0;
    while (true) {
      const std::size_t at = buffer_.find(mark, from);
      if (at != std::string::npos) return take(at + mark.size());
      from = buffer_.size() < mark.size() ? 0 : buffer_.size() - mark.size();
      if (!more()) return take(buffer_.size());
    }
  }
  Got answer() {
    Got got = head();
    if (got.status == 0) return got;
    if (got.headers.count("content-length") > 0) {
      const auto size = static_cast<std::size_t>(std::stoull(got.headers["content-length"]));
      while (buffer_.size() < size && more()) {
      }
      got.body = take(std::min(size, buffer_.size()));
    } else if (got.headers.count("transfer-encoding") > 0) {
      for (std::string chunk = read_chunk(); !chunk.empty(); chunk = read_chunk())
        got.body += chunk;
    } else if (got.status != 204 && got.status != 304) {
      while (more()) {
      }
      got.body = take(buffer_.size());
    }
    return got;
  }
  Got head() {
    Got got;
    const std::string text = read_to("\r\n\r\n");
    if (text.rfind("HTTP/1.1 ", 0) != 0) return got;
    got.status = std::stoi(text.substr(9));
    std::size_t at = text.find("\r\n") + 2;
    while (at + 2 < text.size()) {
      const std::size_t end = text.find("\r\n", at);
      const std::size_t colon = text.find(": ", at);
      std::string name = text.substr(at, colon - at);
      std::transform(name.begin(), name.end(), name.begin(), ::tolower);
      got.headers[name] = text.substr(colon + 2, end - colon - 2);
      at = end + 2;
    }
    return got;
  }
  // Empty at the end.
  std::string read_chunk() {
    const std::string size = read_to("\r\n");
    if (size.empty()) return "";
    const std::size_t count = std::stoul(size, nullptr, 16);
    while (buffer_.size() < count + 2 && more()) {
    }
    std::string chunk = take(std::min(count + 2, buffer_.size()));
    if (chunk.size() >= 2) chunk.resize(chunk.size() - 2);
    return chunk;
  }
  // Whether the other side has closed it.
  bool closed() {
    while (more()) {
    }
    return ended_;
  }

 private:
  void open(const sockaddr* at, socklen_t size) {
    const timeval patience{20, 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(socket_, at, size) != 0) throw std::runtime_error("no connection");
  }
  std::string take(std::size_t count) {
    std::string taken = buffer_.substr(0, count);
    buffer_.erase(0, count);
    return taken;
  }
  bool more() {
    char bytes[65536];
    const ssize_t count = recv(socket_, bytes, sizeof bytes, 0);
    if (count <= 0) {
      ended_ = count == 0 || errno == ECONNRESET;
      return false;
    }
    buffer_.append(bytes, static_cast<std::size_t>(count));
    return true;
  }

  int socket_;
  std::string buffer_;
  bool ended_ = false;
};

// The text of a stream of completions.
inline std::string streamed_text(const std::string& events) {
  std::string text;
  std::size_t at = 0;
  for (std::size_t end; (end = events.find("\n\n", at)) != std::string::npos; at = end + 2) {
    const std::string event = events.substr(at + 6, end - at - 6);
    if (event == "[DONE]") continue;
    const auto json = nlohmann::json::parse(event);
    if (json.contains("choices")) text += json["choices"][0]["text"];
  }
  return text;
}

}  // namespace server::testing
