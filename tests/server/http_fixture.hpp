// A whole server in this process.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "http_client.hpp"
#include "server/core.hpp"
#include "server/http_server.hpp"

namespace server::testing {

class HttpHouse {
 public:
  explicit HttpHouse(const mamba::LanguageModel& model, HttpOptions http = {},
                     EngineOptions engine_options = {}, CoreOptions options = {},
                     StoreOptions store = {})
      : cache_(model, few_bytes()),
        engine_(model, tokenizer_, &cache_, stream_, engine_options),
        states_(model, std::move(store)),
        core_(
            engine_, states_, &cache_, [this](Work work) { worker_->run(std::move(work)); },
            std::move(options)) {
    http.port = 0;
    http.log = false;
    http_.emplace(core_, http);
    if (pipe(end_) != 0) throw std::runtime_error("no pipe");
    engine_thread_ = std::thread([this] { engine_.run(); });
    http_thread_ = std::thread([this] { http_->run(end_[0]); });
  }
  ~HttpHouse() {
    end();
    engine_.stop();
    engine_thread_.join();
    worker_.reset();  // what it still does needs the others
    close(end_[0]);
    close(end_[1]);
  }
  HttpHouse(const HttpHouse&) = delete;
  HttpHouse& operator=(const HttpHouse&) = delete;

  void begin_to_end() { EXPECT_EQ(write(end_[1], "!", 1), 1); }
  void end() {
    if (!http_thread_.joinable()) return;
    begin_to_end();
    http_thread_.join();
  }
  int port() const {
    const std::string& address = http_->address();
    return std::stoi(address.substr(address.rfind(':') + 1));
  }
  Engine& engine() { return engine_; }
  Core& core() { return core_; }
  // Until nothing is written any more.
  void wait_until_idle() const { wait_until_idle_but(0); }
  void wait_until_idle_but(std::int64_t texts) const {
    for (int i = 0; i < 4000; ++i) {
      const Counts counts = engine_.counts();
      if (counts.running + counts.waiting == texts) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "something is still written";
  }

 private:
  static mamba::CacheOptions few_bytes() {
    mamba::CacheOptions options;
    options.host_bytes = 4 << 20;
    return options;
  }

  mamba::Tokenizer tokenizer_ = mamba::Tokenizer::bytes();
  mamba::Stream stream_{mamba::Device::cpu(), 1};
  mamba::StateCache cache_;
  Engine engine_;
  StateStore states_;
  std::optional<Worker> worker_{std::in_place};
  Core core_;
  std::optional<HttpServer> http_;
  int end_[2] = {-1, -1};
  std::thread engine_thread_, http_thread_;
};

}  // namespace server::testing
