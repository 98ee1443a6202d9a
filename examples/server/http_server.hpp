// HTTP/1.1 around the core: connections, limits, what a client that is slow, silent, gone or
// hostile can do, and a line of JSON in the log for each request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core.hpp"

namespace server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;                       // 0: any that is free
  std::string unix_path;                 // a socket there in place of an address
  std::int64_t most_head = 16 << 10;     // bytes of a first line and its headers
  std::int64_t idle_seconds = 60;        // that nothing comes, or that nothing is taken
  std::int64_t connections = 1024;       // at once; others wait to be accepted
  std::int64_t requests_a_client = 256;  // at once, from one address
  bool log = true;                       // a line for each request
};

class HttpServer {
 public:
  // Listens from here on: clients wait. mamba::Error where that cannot be.
  HttpServer(Core& core, const HttpOptions& options);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // "http://127.0.0.1:8080", or "unix:PATH".
  const std::string& address() const;
  // Until `end` can be read from; then takes no more, and returns when all is answered.
  void run(int end);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One line of JSON on standard error, with the time. `fields` begins with a comma: ,"key":value
void log_line(const std::string& fields);

}  // namespace server
