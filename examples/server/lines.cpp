#include "lines.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../programs/interrupt.hpp"
#include "../programs/output.hpp"
#include "line_request.hpp"

namespace server {

namespace {

using OrderedJson = nlohmann::ordered_json;  // keys stay as they are written here

// The longest line that is looked at, so that one without an end takes no more memory than this.
constexpr std::size_t most_line_bytes = std::size_t{64} << 20;

// An object with the id of a request before its other keys. Whole lines only, each in one piece:
// whatever ends this program, no reader sees half of one.
void send_line(const std::string& id, const OrderedJson& rest) {
  const std::string others = rest.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  write_output("mamba-server", "{\"id\":" + id + "," + others.substr(1) + "\n");
}

const char* name_of(Finish reason) {
  switch (reason) {
    case Finish::max_tokens:
      return "max_tokens";
    case Finish::eos:
      return "eos";
    case Finish::stop:
      return "stop";
    default:
      return "interrupted";
  }
}

class LineListener : public Listener {
 public:
  LineListener(std::string id, bool with_cache) : id_(std::move(id)), with_cache_(with_cache) {}

  void token(int, Token token) override { send_text(token.text); }
  void finished(int, Finished end) override {
    send_text(end.text);
    OrderedJson line{{"done", name_of(end.reason)}, {"prompt_tokens", end.read}};
    if (with_cache_) line["known_tokens"] = end.known;
    line["tokens"] = end.written;
    send_line(id_, line);
  }
  void failed(int, const std::string& why) override { send_line(id_, {{"error", why}}); }

 private:
  void send_text(const std::string& text) {
    if (!text.empty()) send_line(id_, {{"text", text}});
  }

  std::string id_;
  bool with_cache_;
};

// Standard input in lines, of which it takes what is there and waits only if told to.
class Input {
 public:
  bool open() const { return open_; }

  void read_lines(bool wait, std::deque<std::string>& lines) {
    pollfd either[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_descriptor(), POLLIN, 0}};
    if (poll(either, 2, wait ? -1 : 0) <= 0 || either[0].revents == 0) return;
    char buffer[65536];
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
    std::string_view left(buffer, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    for (std::size_t end; (end = left.find('\n')) != std::string_view::npos;) {
      add(left.substr(0, end));
      lines.push_back(std::move(part_));
      part_.clear();
      left.remove_prefix(end + 1);
    }
    add(left);
    if (count > 0) return;
    open_ = false;
    if (!part_.empty()) lines.push_back(std::move(part_));  // the last line may have no end
  }

 private:
  // What a line has beyond its most is passed over: it is refused as a whole when it is parsed.
  void add(std::string_view bytes) { part_ += bytes.substr(0, most_line_bytes + 1 - part_.size()); }

  std::string part_;
  bool open_ = true;
};

class Lines {
 public:
  Lines(Engine& engine, std::int64_t capacity, bool with_cache)
      : engine_(engine), capacity_(static_cast<std::size_t>(capacity)), with_cache_(with_cache) {}

  void run() {
    // No more is taken than there will soon be room for: a faster writer waits at its pipe.
    bool busy = false;
    while (!interrupted()) {
      const bool idle = !busy && lines_.empty();
      if (idle && !input_.open()) return;
      if (input_.open() && lines_.size() < capacity_) input_.read_lines(/*wait=*/idle, lines_);
      while (engine_.room() > 0 && submit_next()) {
      }
      busy = engine_.step();
    }
    engine_.interrupt();
    input_.read_lines(/*wait=*/false, lines_);  // what lies in the pipe was asked too
    while (submit_next()) engine_.interrupt();
  }

 private:
  // The next line that asks for something; the others on the way are answered here.
  bool submit_next() {
    while (!lines_.empty()) {
      const std::string line = std::move(lines_.front());
      lines_.pop_front();
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      LineRequest request;
      try {
        if (line.size() > most_line_bytes) {
          throw std::invalid_argument("expected a line of at most 64 MiB, got more");
        }
        parse(line, engine_.tokenizer(), request);
      } catch (const std::exception& error) {
        send_line(request.id, {{"error", error.what()}});
        continue;
      }
      engine_.submit(std::move(request.job),
                     std::make_shared<LineListener>(request.id, with_cache_));
      return true;
    }
    return false;
  }

  Engine& engine_;
  std::size_t capacity_;
  bool with_cache_;
  Input input_;
  std::deque<std::string> lines_;  // not yet looked at
};

}  // namespace

void serve_lines(Engine& engine, std::int64_t capacity, bool with_cache) {
  Lines(engine, capacity, with_cache).run();
}

}  // namespace server
