// What comes over HTTP and what goes back, without sockets.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <mamba/bytes.hpp>

namespace server {

// What an answer has taken, for the log.
struct Account {
  std::atomic<std::int64_t> read{0}, written{0};  // tokens
};

struct Request {
  std::string method, target;                  // as in the first line
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  bool local = false;  // over a unix socket, where no browser comes from
  std::shared_ptr<Account> account = std::make_shared<Account>();

  // Empty where there is none.
  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string() : found->second;
  }
};

using Headers = std::vector<std::pair<std::string, std::string>>;

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers = {};
  std::shared_ptr<const mamba::Bytes> bytes = nullptr;  // in place of the body
};

// Where the answer to one request goes, from whichever thread: one Response, or a stream of events
// (text/event-stream) from begin() to end().
class Reply {
 public:
  Reply() = default;
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;
  virtual ~Reply() = default;
  virtual void send(Response response) = 0;
  virtual void begin() = 0;
  virtual void write(std::string events) = 0;
  virtual void end() = 0;
};

// Ends what still runs for a request whose client has gone. Empty where nothing does.
using Cancel = std::function<void()>;

// A Cancel for what has not begun yet: it may be called before it is known what it ends.
class LateCancel {
 public:
  void set(Cancel cancel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancel_ = std::move(cancel);
    if (gone_ && cancel_) cancel_();
  }
  void operator()() {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    if (cancel_) cancel_();
  }

 private:
  std::mutex mutex_;
  bool gone_ = false;
  Cancel cancel_;
};

// A request that is refused, or that failed.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "",
           Headers more_headers = {})
      : std::runtime_error(message),
        status_(status),
        param_(std::move(param)),
        headers_(std::move(more_headers)) {}

  int status() const { return status_; }
  Response response() const;
  std::string json() const;  // {"error": {"message", "type", "param", "code"}}

 private:
  int status_;
  std::string param_;
  Headers headers_;
};

// In lower case, of ASCII letters.
std::string lower(std::string text);

// As a text of JSON, with quotes.
std::string json_string(const std::string& text);

}  // namespace server
