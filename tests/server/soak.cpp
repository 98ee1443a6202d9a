// mamba-server among clients of every kind, over loopback: mamba_server_soak REQUESTS
//
// Threads ask, hang up in the middle, send what is broken, and move states about. Every answer that
// is waited for must be the one that would be written alone; at the end nothing runs any more, and
// the process has no more descriptors and no more memory than it had after the first quarter.
#include <dirent.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "http_fixture.hpp"
#include "poisoned_model.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

namespace {

using server::Json;
using server::testing::Client;
using server::testing::Got;
using server::testing::HttpHouse;
using server::testing::streamed_text;

constexpr int threads = 8;

int descriptors() {
  int count = 0;
  DIR* folder = opendir("/proc/self/fd");
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

double resident_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

// A request, and the text that comes of it.
struct Known {
  Json body;
  std::string prompt, text;
  std::string open_text;  // without half a character at its end, which a state goes on with
};

std::vector<Known> known_requests(const mamba::LanguageModel& model) {
  const mamba::Tokenizer bytes = mamba::Tokenizer::bytes();
  std::vector<Known> all;
  for (int i = 0; i < 24; ++i) {
    Known one;
    one.prompt = std::string(static_cast<std::size_t>(i * i), 'a') + "The king";
    mamba::SamplingOptions sampling;
    mamba::GenerateOptions options;
    options.max_tokens = 5 + 3 * i;
    one.body = {{"prompt", one.prompt}, {"max_tokens", options.max_tokens}, {"temperature", 0}};
    if (i % 2 == 1) {
      sampling.temperature = 0.8f;
      sampling.top_p = 0.9f;
      sampling.seed = static_cast<std::uint64_t>(i);
      one.body.update({{"temperature", 0.8}, {"top_p", 0.9}, {"seed", i}});
    }
    mamba::Generator alone(model, sampling);
    alone.read(bytes.encode(one.prompt));
    const std::string written = bytes.decode(alone.generate(options).tokens);
    mamba::TextStream text;
    one.open_text = text.push(written);
    one.text = one.open_text + text.finish();
    all.push_back(std::move(one));
  }
  return all;
}

class Soak {
 public:
  Soak(HttpHouse& house, const std::vector<Known>& known) : house_(house), known_(known) {}

  void run(std::int64_t requests) {
    left_ = requests;
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t) all.emplace_back([this, t] { work(t); });
    for (std::thread& thread : all) thread.join();
    house_.wait_until_idle();
  }

  bool report() {
    std::printf("| what | asked | wrong |\n|---|---:|---:|\n");
    bool good = true;
    for (const auto& [name, count] : counts_) {
      std::printf("| %s | %lld | %lld |\n", name.c_str(), static_cast<long long>(count[0]),
                  static_cast<long long>(count[1]));
      good = good && count[1] == 0;
    }
    for (const std::string& wrong : wrong_) std::printf("wrong: %s\n", wrong.c_str());
    return good;
  }

 private:
  struct Thread {
    std::mt19937_64 random;
    std::optional<Client> kept;
    std::size_t pick(std::size_t count) { return random() % count; }
  };

  void count(const std::string& name, const std::string& wrong) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& counts = counts_[name];
    ++counts[0];
    if (wrong.empty()) return;
    ++counts[1];
    if (wrong_.size() < 10) wrong_.push_back(name + ": " + wrong.substr(0, 300));
  }

  void work(int number) {
    Thread thread;
    thread.random.seed(static_cast<std::uint64_t>(number) + 1);
    while (left_-- > 0) {
      try {
        one(thread);
      } catch (const std::exception& error) {
        count("exceptions", error.what());
        thread.kept.reset();
      }
    }
  }

  void one(Thread& thread) {
    const std::size_t dice = thread.pick(100);
    const Known& known = known_[thread.pick(known_.size())];
    if (!thread.kept || thread.pick(20) == 0) thread.kept.emplace(house_.port());
    Client& client = *thread.kept;
    if (dice < 45) {
      Json body = known.body;
      const bool stream = thread.pick(2) == 0;
      body["stream"] = stream;
      const Got got = client.post("/v1/completions", body);
      const std::string text = stream
                                   ? streamed_text(got.body)
                                   : got.json().at("choices").at(0).at("text").get<std::string>();
      count(stream ? "streams" : "completions", text == known.text ? "" : got.body);
    } else if (dice < 60) {
      states(client, known);
    } else if (dice < 75) {
      Client gone(house_.port());
      const Json body{{"prompt", known.prompt},
                      {"max_tokens", 1000000},
                      {"stream", true},
                      {"ignore_eos", true},
                      {"n", 1 + thread.pick(3)}};
      gone.ask("POST", "/v1/completions", body.dump());
      if (thread.pick(2) == 0) {
        const bool answered = gone.head().status == 200;
        for (std::size_t i = thread.pick(5); i-- > 0;) gone.read_chunk();
        count("hung up while it is written", answered ? "" : "no answer");
      } else {
        count("hung up at once", "");
      }
    } else if (dice < 90) {
      bad_body(client, thread);
    } else {
      broken(thread);
    }
  }

  void states(Client& client, const Known& known) {
    Json made = client.post("/states", {{"prompt", known.prompt}}).json();
    const std::string root = made.at("id");
    Json body = known.body;
    body.erase("prompt");
    const Json written = client.post("/states/" + root + "/generate", body).json();
    std::string wrong = written.at("text") == known.open_text ? "" : written.dump();
    const std::string last = written.at("state").at("id");
    const Json back =
        client.post("/states/" + last + "/rewind", {{"tokens", known.prompt.size()}}).json();
    const std::string id = back.at("id");
    const Got content = client.get("/states/" + id + "/content");
    client.ask("PUT", "/states", content.body, "application/octet-stream");
    const std::string moved = client.answer().json().at("id");
    const Json again = client.post("/states/" + moved + "/generate", known.body).json();
    if (known.body.at("temperature") == 0 && again.at("text") != known.open_text)
      wrong = again.dump();
    for (const std::string& one : {root, last, id, moved}) {
      client.ask("DELETE", "/states/" + one);
      client.answer();
    }
    count("states: made, written on, rewound, downloaded, uploaded", wrong);
  }

  void bad_body(Client& client, Thread& thread) {
    struct Bad {
      const char* target;
      std::string body;
      int status;
    };
    static const std::vector<Bad> all = {
        {"/v1/completions", "{\"prompt\":", 400},
        {"/v1/completions", std::string(100000, '['), 400},
        {"/v1/completions", "{\"prompt\":" + std::string(100000, '[') + "}", 400},
        {"/v1/completions", "{\"prompt\":\"\"}", 422},
        {"/v1/completions", "{\"prompt\":[65,999999999999]}", 422},
        {"/v1/completions", "{\"prompt\":\"A\",\"max_tokens\":-1}", 422},
        {"/v1/completions", "{\"prompt\":\"A\",\"temperature\":1e999}", 400},
        {"/v1/completions", "{\"prompt\":\"AZA\"}", 500},  // no finite logit
        {"/states/nobody/generate", "{}", 404},
        {"/states", "{\"prompt\":\"A\",\"from\":\"nobody\"}", 404},
        {"/tokenize", "{\"text\":7}", 422},
        {"/nowhere", "{}", 404}};
    const Bad& bad = all[thread.pick(all.size())];
    client.ask("POST", bad.target, bad.body);
    const Got got = client.answer();
    count("bad bodies", got.status == bad.status && got.json().contains("error")
                            ? ""
                            : std::to_string(got.status) + " " + got.body);
  }

  void broken(Thread& thread) {
    Client client(house_.port());
    int expected = 400;
    switch (thread.pick(6)) {
      case 0:
        client.send("\x16\x03\x01 what is this\r\n\r\n");
        break;
      case 1:
        client.send("GET / HTTP/1.1\r\nX: " + std::string(100000, 'x'));
        expected = 431;
        break;
      case 2:
        client.send(
            "PUT /states HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n");
        expected = 413;
        break;
      case 3:  // hangs up in the middle of a body
        client.send("POST /states HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{\"pro");
        expected = 0;
        break;
      case 4:
        client.send("GET /hea");
        expected = 0;
        break;
      default:
        client.send("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        expected = 403;
    }
    if (expected == 0) return count("broken requests", "");
    const Got got = client.answer();
    count("broken requests", got.status == expected ? "" : std::to_string(got.status) + got.body);
  }

  HttpHouse& house_;
  const std::vector<Known>& known_;
  std::atomic<std::int64_t> left_{0};
  std::mutex mutex_;
  std::map<std::string, std::array<std::int64_t, 2>> counts_;
  std::vector<std::string> wrong_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t requests = argc > 1 ? std::atoll(argv[1]) : 2000;
  const mamba::LanguageModel model = mamba::testing::poisoned_model(256, 'Z');
  const std::vector<Known> known = known_requests(model);
  server::EngineOptions engine;
  engine.capacity = 6;
  engine.queue = 1000;
  server::CoreOptions core;
  core.most_json = 1 << 20;
  core.most_state = 1 << 20;
  server::StoreOptions store;
  store.bytes = 4 << 20;
  HttpHouse house(model, {}, engine, core, store);
  Soak soak(house, known);
  const auto begin = std::chrono::steady_clock::now();
  soak.run(requests / 4);
  const int descriptors_then = descriptors();
  const double memory_then = resident_mib();
  soak.run(requests - requests / 4);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const double memory_now = resident_mib();
  // A connection that a client has just left may not be closed on this side yet.
  int descriptors_now = descriptors();
  for (int i = 0; i < 400 && descriptors_now > descriptors_then; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    descriptors_now = descriptors();
  }
  bool good = soak.report();
  std::printf("%lld requests in %.1f s; descriptors %d, then %d; memory %.1f MiB, then %.1f\n",
              static_cast<long long>(requests), seconds.count(), descriptors_then, descriptors_now,
              memory_then, memory_now);
  good = good && descriptors_now <= descriptors_then && house.engine().room() == engine.capacity;
#ifndef SANITIZED  // which keep what was freed for a while
  good = good && memory_now < memory_then + 16;
#endif
  std::puts(good ? "good" : "NOT GOOD");
  return good ? 0 : 1;
}
