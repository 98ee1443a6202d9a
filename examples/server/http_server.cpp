#include "http_server.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <mamba/error.hpp>

namespace server {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using Protocol = asio::generic::stream_protocol;
using Socket = beast::basic_stream<Protocol>;

constexpr std::size_t most_unread = std::size_t{4} << 20;  // bytes that a slow client has not taken
constexpr std::size_t large_body = std::size_t{1} << 18;
constexpr std::size_t most_lingering = std::size_t{1} << 20;

std::string time_now() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto part =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const std::size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(part));
  return text;
}

bool is_plain(const std::string& id) {
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
}

}  // namespace

void log_line(const std::string& fields) {
  const std::string line = "{\"time\":\"" + time_now() + "\"" + fields + "}\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

// ---- replies that come from other threads ------------------------------------------------------

namespace {

class Session;

// What is said in one request's answer, on its way to the thread of the sockets.
struct Said {
  std::optional<Response> whole;
  bool begins = false, ends = false;
  std::string events;
};

class Exchange;

// Exchanges that have something to say. The thread of the sockets is woken once for all of them.
class Outbox {
 public:
  explicit Outbox(asio::io_context& io) : io_(io) {}
  void add(std::shared_ptr<Exchange> exchange);

 private:
  void flush();

  asio::io_context& io_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Exchange>> ready_;
};

class Exchange : public Reply, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(Outbox& outbox, const std::shared_ptr<Session>& session)
      : outbox_(outbox), session_(session) {}

  void send(Response response) override {
    add([&](Said& said) { said.whole = std::move(response); });
  }
  void begin() override {
    add([](Said& said) { said.begins = true; });
  }
  void write(std::string events) override {
    add([&](Said& said) { said.events += events; });
  }
  void end() override {
    add([](Said& said) { said.ends = true; });
  }
  void flush();  // on the thread of the sockets

 private:
  template <class F>
  void add(F change) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      change(said_);
      if (std::exchange(waits_, true)) return;
    }
    outbox_.add(shared_from_this());
  }

  Outbox& outbox_;
  std::weak_ptr<Session> session_;
  std::mutex mutex_;
  Said said_;
  bool waits_ = false;
};

void Outbox::add(std::shared_ptr<Exchange> exchange) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ready_.push_back(std::move(exchange));
    if (ready_.size() > 1) return;
  }
  asio::post(io_, [this] { flush(); });
}

void Outbox::flush() {
  std::vector<std::shared_ptr<Exchange>> ready;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ready.swap(ready_);
  }
  for (const auto& exchange : ready) exchange->flush();
}

// ---- connections -------------------------------------------------------------------------------

// What all connections share; all on the thread of the sockets.
struct House {
  Core& core;
  const HttpOptions& options;
  asio::io_context& io;
  Outbox outbox;
  std::set<std::shared_ptr<Session>> sessions;
  std::map<std::string, std::int64_t> running;  // requests by address
  bool ending = false;
  std::function<void()> left;  // a session has gone

  House(Core& of, const HttpOptions& with, asio::io_context& on)
      : core(of), options(with), io(on), outbox(on) {}
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(House& house, Protocol::socket socket, std::string client, bool local)
      : house_(house), socket_(std::move(socket)), client_(std::move(client)), local_(local) {}

  void start() { read_head(); }

  // Nothing more is taken; what runs is answered.
  void drain() {
    if (idle_) close();
  }

  void said(const std::shared_ptr<Exchange>& by, Said said) {
    if (by != exchange_ || closed_) return;
    if (said.whole) return respond(std::move(*said.whole));
    if (said.begins) begin_stream();
    if (!said.events.empty()) write_chunk(said.events);
    if (said.ends) end_stream();
    if (out_.size() > most_unread) return leave();  // nobody reads it
    flush();
  }

 private:
  using Parser = http::request_parser<http::string_body>;

  // ---- in ----

  void read_head() {
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(house_.options.most_head));
    parser_->body_limit(boost::none);  // known when the first line is
    idle_ = true;
    if (house_.ending) return close();
    expire();
    http::async_read_header(
        socket_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, std::size_t) { self->on_head(error); });
  }

  void expire() { socket_.expires_after(std::chrono::seconds(house_.options.idle_seconds)); }

  void on_head(error_code error) {
    if (closed_) return;
    idle_ = false;
    started_ = Clock::now();
    request_ = Request();
    request_.local = local_;
    request_id_ = house_.core.new_name("req-");
    if (error) return bad_input(error);
    const auto& message = parser_->get();
    request_.method = std::string(message.method_string());
    request_.target = std::string(message.target());
    for (const auto& field : message) {
      std::string& value = request_.headers[lower(std::string(field.name_string()))];
      if (!value.empty()) value += ", ";
      value += std::string(field.value());
    }
    const std::string given = request_.header("x-request-id");
    if (is_plain(given)) request_id_ = given;
    old_ = message.version() < 11;
    keep_alive_ = parser_->keep_alive();
    if (!count_in()) {
      return refuse(ApiError(429,
                             "expected at most " +
                                 std::to_string(house_.options.requests_a_client) +
                                 " requests at once from one address, got more",
                             "", {{"Retry-After", "1"}})
                        .response());
    }
    if (std::optional<Response> refused = house_.core.refuse(request_)) {
      return refuse(std::move(*refused));
    }
    const std::int64_t most = house_.core.most_body(request_);
    const auto length = parser_->content_length();
    if (length && *length > static_cast<std::uint64_t>(most)) return too_large(most);
    parser_->body_limit(static_cast<std::uint64_t>(most));
    if (lower(request_.header("expect")) == "100-continue") {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      flush();
    }
    // Beast reads as much at a time as its buffer has room for.
    if (length.value_or(large_body) >= large_body) buffer_.reserve(large_body);
    expire();
    http::async_read(
        socket_, buffer_, *parser_,
        [self = shared_from_this()](error_code failed, std::size_t) { self->on_body(failed); });
  }

  void on_body(error_code error) {
    if (closed_) return;
    if (error == http::error::body_limit) return too_large(house_.core.most_body(request_));
    if (error) return bad_input(error);
    exchange_ = std::make_shared<Exchange>(house_.outbox, shared_from_this());
    Request request = request_;  // the log needs it too, but for its body
    request.body = std::move(parser_->get().body());
    cancel_ = house_.core.handle(std::move(request), exchange_);
    watch();
  }

  void bad_input(error_code error) {
    keep_alive_ = false;
    if (error == http::error::end_of_stream || error == beast::error::timeout ||
        error == asio::error::operation_aborted ||
        (error.category() != http::make_error_code(http::error::bad_method).category())) {
      return leave();
    }
    if (error == http::error::partial_message) return leave();
    const bool large = error == http::error::header_limit;
    const std::string what = large
                                 ? "expected at most " + std::to_string(house_.options.most_head) +
                                       " bytes of first line and headers, got more"
                                 : "expected a request of HTTP/1.1, got " + error.message();
    refuse(ApiError(large ? 431 : 400, what).response());
  }

  void too_large(std::int64_t most) {
    refuse(ApiError(413, "the body: expected at most " + std::to_string(most) + " bytes, got more",
                    "body")
               .response());
  }

  // Before the body is read: what comes after it cannot be told from it, so that was the last
  // request of this connection.
  void refuse(Response response) {
    if (!parser_->is_header_done() || parser_->chunked() ||
        parser_->content_length().value_or(0) > 0) {
      keep_alive_ = false;
    }
    exchange_ = nullptr;
    respond(std::move(response));
  }

  // A client that goes while it is answered is heard of through its socket.
  void watch() {
    const auto exchange = exchange_;
    socket_.socket().async_wait(
        Protocol::socket::wait_read, [self = shared_from_this(), exchange](error_code error) {
          if (error || self->closed_ || self->exchange_ != exchange || !exchange) return;
          char byte = 0;
          const ssize_t count =
              recv(self->socket_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
          if (count == 0 || (count < 0 && errno != EAGAIN)) self->leave();
        });
  }

  // ---- requests at once ----

  bool count_in() {
    if (local_) return true;
    std::int64_t& running = house_.running[client_];
    ++running;
    counted_ = true;
    return running <= house_.options.requests_a_client;
  }

  void count_out() {
    if (!std::exchange(counted_, false)) return;
    const auto running = house_.running.find(client_);
    if (--running->second == 0) house_.running.erase(running);
  }

  // ---- out ----

  void head_of(int status, const std::string& content_type, const Headers& headers) {
    status_ = status;
    if (house_.ending || house_.core.ending()) keep_alive_ = false;
    out_ += "HTTP/1.1 " + std::to_string(status) + " ";
    out_ += std::string(http::obsolete_reason(static_cast<http::status>(status)));
    out_ += "\r\nX-Request-Id: " + request_id_ + "\r\n";
    out_ += "X-Content-Type-Options: nosniff\r\n";
    if (status != 204 && status != 304) out_ += "Content-Type: " + content_type + "\r\n";
    for (const auto& [name, value] : headers) out_ += name + ": " + value + "\r\n";
    for (const auto& [name, value] : house_.core.cross_origin(request_)) {
      out_ += name + ": " + value + "\r\n";
    }
    if (!keep_alive_) out_ += "Connection: close\r\n";
    if (old_ && keep_alive_) out_ += "Connection: keep-alive\r\n";
  }

  void respond(Response response) {
    const std::size_t size = response.bytes ? response.bytes->size() : response.body.size();
    head_of(response.status, response.content_type, response.headers);
    if (response.status != 204 && response.status != 304) {
      out_ += "Content-Length: " + std::to_string(size) + "\r\n";
    }
    out_ += "\r\n";
    if (response.bytes) {
      bytes_ = std::move(response.bytes);
    } else if (response.status != 204 && response.status != 304) {
      out_ += response.body;
    }
    done_ = true;
    flush();
  }

  void begin_stream() {
    if (old_) keep_alive_ = false;  // its end is the end of the connection
    head_of(200, "text/event-stream", {{"Cache-Control", "no-store"}});
    if (!old_) out_ += "Transfer-Encoding: chunked\r\n";
    out_ += "\r\n";
  }

  void write_chunk(const std::string& bytes) {
    if (old_) {
      out_ += bytes;
      return;
    }
    char size[24];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    out_ += size;
    out_ += bytes;
    out_ += "\r\n";
  }

  void end_stream() {
    if (!old_) out_ += "0\r\n\r\n";
    done_ = true;
  }

  // What the system takes at once needs no operation of its own, with a deadline: most tokens do
  // not.
  void send_at_once() {
    const ssize_t count = ::send(socket_.socket().native_handle(), out_.data(), out_.size(),
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) out_.erase(0, static_cast<std::size_t>(count));
  }

  void flush() {
    if (writing_ || closed_) return;
    if (!out_.empty()) send_at_once();
    if (out_.empty() && !bytes_) {
      if (std::exchange(done_, false)) answered();
      return;
    }
    writing_ = true;
    going_.swap(out_);
    out_.clear();
    going_bytes_ = std::move(bytes_);
    bytes_ = nullptr;
    std::array<asio::const_buffer, 2> buffers{asio::buffer(going_), asio::const_buffer()};
    if (going_bytes_) {
      buffers[1] = asio::const_buffer(going_bytes_->data(), going_bytes_->size());
    }
    expire();
    asio::async_write(socket_, buffers, [self = shared_from_this()](error_code error, std::size_t) {
      self->writing_ = false;
      self->going_.clear();
      self->going_bytes_ = nullptr;
      if (self->closed_) return;
      if (error) return self->leave();
      self->flush();
    });
  }

  void log() {
    const std::chrono::duration<double, std::milli> took = Clock::now() - started_;
    char ms[32];
    std::snprintf(ms, sizeof ms, "%.3f", took.count());
    house_.core.metrics().request(status_);
    if (!house_.options.log) return;
    log_line(",\"id\":" + json_string(request_id_) + ",\"client\":" + json_string(client_) +
             ",\"method\":" + json_string(request_.method.substr(0, 20)) +
             ",\"path\":" + json_string(request_.target.substr(0, 200)) +
             ",\"status\":" + std::to_string(status_) + ",\"ms\":" + ms +
             ",\"tokens_read\":" + std::to_string(request_.account->read) +
             ",\"tokens_written\":" + std::to_string(request_.account->written));
  }

  void answered() {
    log();
    count_out();
    exchange_ = nullptr;
    cancel_ = {};
    if (!keep_alive_) return linger();
    socket_.socket().cancel();  // of watch(); nothing else is under way
    read_head();
  }

  // ---- the end ----

  // The client reads what was sent last before it hears that the connection is over, also where it
  // still sends a body that nobody wants.
  void linger() {
    error_code ignored;
    socket_.socket().shutdown(Protocol::socket::shutdown_send, ignored);
    socket_.expires_after(std::chrono::seconds(2));
    lingered_ = 0;
    read_and_drop();
  }

  void read_and_drop() {
    socket_.async_read_some(asio::buffer(dropped_),
                            [self = shared_from_this()](error_code error, std::size_t count) {
                              self->lingered_ += count;
                              if (error || self->lingered_ > most_lingering) return self->close();
                              self->read_and_drop();
                            });
  }

  // The client has gone, or is no client.
  void leave() {
    if (closed_) return;
    if (exchange_) {
      status_ = 499;  // as others log a client that has not waited
      log();
    }
    if (cancel_) cancel_();
    close();
  }

  void close() {
    if (std::exchange(closed_, true)) return;
    count_out();
    cancel_ = {};
    exchange_ = nullptr;
    socket_.close();
    house_.sessions.erase(shared_from_this());
    house_.left();
  }

  House& house_;
  Socket socket_;
  std::string client_;
  bool local_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  Request request_;
  std::string request_id_;
  Clock::time_point started_;
  std::shared_ptr<Exchange> exchange_;
  Cancel cancel_;
  bool old_ = false, keep_alive_ = true, idle_ = true, counted_ = false;

  std::string out_, going_;  // to be written, and being written
  std::shared_ptr<const mamba::Bytes> bytes_, going_bytes_;
  bool writing_ = false, done_ = false, closed_ = false;
  int status_ = 0;
  std::size_t lingered_ = 0;
  std::array<char, 16384> dropped_{};
};

void Exchange::flush() {
  Said said;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    said = std::exchange(said_, Said());
    waits_ = false;
  }
  if (const auto session = session_.lock()) session->said(shared_from_this(), std::move(said));
}

}  // namespace

// ---- the server --------------------------------------------------------------------------------

struct HttpServer::Impl {
  HttpOptions options;
  asio::io_context io{1};
  House house;
  asio::basic_socket_acceptor<Protocol> acceptor{io};
  bool accepting = false;
  std::string address;
  std::optional<asio::posix::stream_descriptor> end;
  asio::steady_timer pause{io};

  Impl(Core& core, const HttpOptions& with) : options(with), house(core, options, io) {
    house.left = [this] {
      if (house.ending && house.sessions.empty()) io.stop();
      accept();
    };
    try {
      options.unix_path.empty() ? listen_tcp() : listen_unix();
    } catch (const boost::system::system_error& error) {
      const std::string where = options.unix_path.empty()
                                    ? options.host + ":" + std::to_string(options.port)
                                    : options.unix_path;
      throw mamba::Error("mamba-server", "listen", "an address that can be listened on",
                         where + ": " + error.code().message());
    }
  }

  ~Impl() {
    if (!options.unix_path.empty()) unlink(options.unix_path.c_str());
  }

  void listen_tcp() {
    const asio::ip::tcp::endpoint at(asio::ip::make_address(options.host),
                                     static_cast<std::uint16_t>(options.port));
    asio::ip::tcp::acceptor tcp(io);
    tcp.open(at.protocol());
    tcp.set_option(asio::socket_base::reuse_address(true));
    tcp.bind(at);
    tcp.listen();
    const std::string host = at.address().is_v6() ? "[" + options.host + "]" : options.host;
    address = "http://" + host + ":" + std::to_string(tcp.local_endpoint().port());
    const auto protocol = Protocol(at.protocol().family(), at.protocol().protocol());
    acceptor.assign(protocol, tcp.release());
  }

  void listen_unix() {
    const asio::local::stream_protocol::endpoint at(options.unix_path);
    struct stat there = {};
    if (lstat(options.unix_path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) {
      asio::local::stream_protocol::socket probe(io);
      error_code refused;
      probe.connect(at, refused);
      if (refused == asio::error::connection_refused) unlink(options.unix_path.c_str());
    }
    const mode_t before = umask(0177);  // its owner's alone
    asio::local::stream_protocol::acceptor local(io);
    local.open();
    error_code failed;
    local.bind(at, failed);
    umask(before);
    if (failed) {
      options.unix_path.clear();  // it is another's
      throw boost::system::system_error(failed);
    }
    local.listen();
    address = "unix:" + options.unix_path;
    acceptor.assign(Protocol(AF_UNIX, 0), local.release());
  }

  void accept() {
    if (accepting || house.ending) return;
    if (static_cast<std::int64_t>(house.sessions.size()) >= options.connections) return;
    accepting = true;
    acceptor.async_accept([this](error_code error, Protocol::socket socket) {
      accepting = false;
      if (house.ending) return;
      if (!error) {
        begin(std::move(socket));
      } else if (error != asio::error::connection_aborted) {
        // No descriptors, say: others must end before it is any use to try again.
        log_line(",\"problem\":" + json_string("accept: " + error.message()));
        pause.expires_after(std::chrono::milliseconds(100));
        pause.async_wait([this](error_code) { accept(); });
        return;
      }
      accept();
    });
  }

  void begin(Protocol::socket socket) {
    const bool local = !options.unix_path.empty();
    std::string client = "unix";
    if (!local) {
      const int yes = 1;
      setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      error_code unknown;
      const auto from = socket.remote_endpoint(unknown);
      asio::ip::tcp::endpoint tcp;
      if (!unknown && from.size() <= tcp.capacity()) {
        std::memcpy(tcp.data(), from.data(), from.size());
        tcp.resize(from.size());
        client = tcp.address().to_string();
      }
    }
    auto session = std::make_shared<Session>(house, std::move(socket), client, local);
    house.sessions.insert(session);
    session->start();
  }

  void drain() {
    house.ending = true;
    house.core.drain();
    error_code ignored;
    acceptor.close(ignored);
    pause.cancel();
    const auto sessions = house.sessions;  // closing changes the set
    for (const auto& session : sessions) session->drain();
    if (house.sessions.empty()) io.stop();
  }
};

HttpServer::HttpServer(Core& core, const HttpOptions& options)
    : impl_(std::make_unique<Impl>(core, options)) {}
HttpServer::~HttpServer() = default;

const std::string& HttpServer::address() const { return impl_->address; }

void HttpServer::run(int end) {
  Impl& impl = *impl_;
  impl.end.emplace(impl.io, dup(end));
  impl.end->async_wait(asio::posix::stream_descriptor::wait_read, [&impl](error_code error) {
    if (!error) impl.drain();
  });
  impl.accept();
  impl.io.run();
  impl.house.sessions.clear();
}

}  // namespace server
