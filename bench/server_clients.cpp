// What mamba-server takes beside the model, seen by clients on the same machine:
//
//   mamba_server_bench PORT clients N TOKENS   N streams at once: tokens/s of all
//   mamba_server_bench step MODEL N DEVICE     the same texts without a server: tokens/s of N
//                                              generators of a pool, in bf16
//   mamba_server_bench PORT latency            health, one token, the first token from kept states
//   mamba_server_bench PORT content            a state down and up
//   mamba_server_bench make FOLDER             a model of the shape of mamba-130m, random weights,
//                                              and as many words of up to three characters
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include <mamba/generator.hpp>
#include <mamba/language_model.hpp>

#include "server/http_client.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;
using server::testing::Client;
using server::testing::Got;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double median_of(int repeats, const std::function<double()>& measure) {
  std::vector<double> values;
  for (int i = 0; i < repeats; ++i) values.push_back(measure());
  return median(values);
}

// What is left to read of some of the streams, by one thread.
void read_streams(Client* clients, std::size_t count) {
  std::vector<pollfd> sockets;
  for (std::size_t i = 0; i < count; ++i) sockets.push_back({clients[i].descriptor(), POLLIN, 0});
  std::vector<std::string> ends(count);
  std::vector<char> buffer(1 << 18);
  for (std::size_t left = count; left > 0;) {
    poll(sockets.data(), sockets.size(), -1);
    for (std::size_t i = 0; i < count; ++i) {
      if (sockets[i].revents == 0) continue;
      const ssize_t bytes = recv(sockets[i].fd, buffer.data(), buffer.size(), 0);
      std::string& end = ends[i];
      if (bytes > 0) end.append(buffer.data(), static_cast<std::size_t>(bytes));
      if (end.size() > 64) end.erase(0, end.size() - 64);
      if (bytes > 0 && end.find("[DONE]") == std::string::npos) continue;
      sockets[i].fd = -1;
      --left;
    }
  }
}

// From the first answer, when all have been read, to the last. A quarter of the cores read: one
// thread takes 9 us for an event, which 64 streams of a fast model would wait for.
double stream_rate(int port, int clients, int tokens) {
  const Json asked{{"prompt", "And the "},
                   {"max_tokens", tokens},
                   {"temperature", 0},
                   {"ignore_eos", true},
                   {"stream", true}};
  std::vector<Client> all;
  for (int i = 0; i < clients; ++i) all.emplace_back(port);
  for (Client& client : all) client.ask("POST", "/v1/completions", asked.dump());
  pollfd first{all.front().descriptor(), POLLIN, 0};
  poll(&first, 1, -1);
  const auto begin = Clock::now();
  const std::size_t threads = std::max(1U, std::thread::hardware_concurrency() / 4);
  const std::size_t share = (all.size() + threads - 1) / threads;
  std::vector<std::thread> readers;
  for (std::size_t i = 0; i < all.size(); i += share) {
    readers.emplace_back(read_streams, &all[i], std::min(share, all.size() - i));
  }
  for (std::thread& reader : readers) reader.join();
  return static_cast<double>(clients) * tokens / seconds_since(begin);
}

double step_rate(const std::string& folder, int rows, const std::string& device) {
  constexpr int steps = 1024;
  const mamba::LanguageModel model = mamba::LanguageModel::load(
      folder, mamba::DType::bf16, device == "cuda" ? mamba::Device::cuda() : mamba::Device::cpu());
  mamba::GeneratorPool pool(model, rows);
  std::vector<mamba::Generator> all;
  mamba::Generator::Group group;
  for (int i = 0; i < rows; ++i) all.push_back(pool.make(mamba::SamplingOptions()));
  for (mamba::Generator& one : all) {
    one.read({1, 2, 3});
    group.push_back(&one);
  }
  mamba::Generator::next(group);
  const auto begin = Clock::now();
  for (int i = 0; i < steps; ++i) mamba::Generator::next(group);
  return static_cast<double>(rows) * steps / seconds_since(begin);
}

void show_latency(int port) {
  Client client(port);
  const double health = median_of(2000, [&] {
    const auto begin = Clock::now();
    client.get("/health");
    return seconds_since(begin);
  });
  std::printf("| health | %.3f ms |\n", health * 1e3);
  const Json one{{"prompt", "And the "}, {"max_tokens", 1}, {"temperature", 0}};
  client.post("/v1/completions", one);  // what is known is not read again
  const double token = median_of(2000, [&] {
    const auto begin = Clock::now();
    client.post("/v1/completions", one);
    return seconds_since(begin);
  });
  std::printf("| completion of one token, its prompt known | %.3f ms |\n", token * 1e3);
  for (const std::size_t length : {100, 10000, 200000}) {
    const std::string id =
        client.post("/states", {{"prompt", std::string(length, 'a')}}).json().at("id");
    const Json asked{{"max_tokens", 2}, {"temperature", 0}, {"stream", true}};
    const double first = median_of(200, [&] {
      const auto begin = Clock::now();
      client.ask("POST", "/states/" + id + "/generate", asked.dump());
      client.head();
      client.read_chunk();
      const double seconds = seconds_since(begin);
      while (!client.read_chunk().empty()) {
      }
      return seconds;
    });
    std::printf("| first token from a kept state of %zu tokens | %.3f ms |\n", length, first * 1e3);
  }
}

void show_content(int port) {
  Client client(port);
  const std::string id = client.post("/states", {{"prompt", {1, 2, 3}}}).json().at("id");
  const std::string target = "/states/" + id + "/content";
  const std::string content = client.get(target).body;
  const double down = median_of(100, [&] {
    const auto begin = Clock::now();
    client.ask("GET", target);
    client.drop_answer();
    return seconds_since(begin);
  });
  const double up = median_of(100, [&] {
    const auto begin = Clock::now();
    client.ask("PUT", "/states", content, "application/octet-stream");
    const Got got = client.answer();
    const double seconds = seconds_since(begin);
    client.ask("DELETE", "/states/" + got.json().at("id").get<std::string>());
    client.answer();
    return seconds;
  });
  const auto size = static_cast<double>(content.size());
  std::printf("| download of %.2f MB | %.3f ms | %.2f GB/s |\n", size / 1e6, down * 1e3,
              size / down / 1e9);
  std::printf("| upload of %.2f MB | %.3f ms | %.2f GB/s |\n", size / 1e6, up * 1e3,
              size / up / 1e9);
}

// A blank, the printable characters, pairs of them and pairs with one more.
Json words(std::size_t count) {
  std::vector<std::string> texts{"\u0120"};  // how byte-level BPE spells a blank
  Json merges = Json::array();
  std::vector<std::string> letters;
  for (char c = '!'; c <= '~'; ++c) letters.emplace_back(1, c);
  texts.insert(texts.end(), letters.begin(), letters.end());
  std::vector<std::string> shorter = letters;
  while (texts.size() < count) {
    std::vector<std::string> longer;
    for (const std::string& begin : shorter) {
      for (const std::string& end : letters) {
        if (texts.size() == count) break;
        merges.push_back(begin + " " + end);
        longer.push_back(begin + end);
        texts.push_back(longer.back());
      }
    }
    shorter = longer;
  }
  Json vocabulary;
  for (std::size_t i = 0; i < count; ++i) vocabulary[texts[i]] = i;
  const Json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}};
  return {{"pre_tokenizer", bytes},
          {"decoder", bytes},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}};
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "make") {
    mamba::LanguageModelConfig config;
    config.layer.d_model = 768;
    config.n_layer = 24;
    config.vocab_size = 50280;
    mamba::LanguageModel::random(config, 1).save(arguments[1]);
    std::ofstream(arguments[1] + "/tokenizer.json")
        << words(static_cast<std::size_t>(config.vocab_size));
    return 0;
  }
  if (arguments.size() == 4 && arguments[0] == "step") {
    std::printf("%.0f\n", step_rate(arguments[1], std::stoi(arguments[2]), arguments[3]));
    return 0;
  }
  if (arguments.size() < 2) return 2;
  const int port = std::stoi(arguments[0]);
  if (arguments[1] == "clients" && arguments.size() == 4) {
    std::printf("%.0f\n", stream_rate(port, std::stoi(arguments[2]), std::stoi(arguments[3])));
  } else if (arguments[1] == "latency") {
    show_latency(port);
  } else if (arguments[1] == "content") {
    show_content(port);
  } else {
    return 2;
  }
}
