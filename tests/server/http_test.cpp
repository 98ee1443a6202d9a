// mamba-server over loopback: connections that are kept, slow, broken, hostile or gone.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "core_fixture.hpp"
#include "http_fixture.hpp"
#include "testing.hpp"

namespace server {
namespace {

using mamba::testing::TemporaryFolder;
using testing::Client;
using testing::Got;
using ::testing::HasSubstr;
using testing::HttpHouse;
using testing::model;
using testing::streamed_text;
using testing::text_alone;

Json asked(const std::string& prompt, std::int64_t count, bool stream = false) {
  return {{"prompt", prompt}, {"max_tokens", count}, {"temperature", 0}, {"stream", stream}};
}

Json endless(int n = 1) {
  return {
      {"prompt", "A"}, {"max_tokens", 100000000}, {"ignore_eos", true}, {"stream", true}, {"n", n}};
}

TEST(HttpTest, AConnectionIsKept) {
  HttpHouse house(model());
  Client client(house.port());
  for (int i = 0; i < 3; ++i) {
    const Got got = client.post("/v1/completions", asked("The state", 8));
    EXPECT_EQ(got.status, 200);
    EXPECT_EQ(got.json()["choices"][0]["text"], text_alone("The state", 8));
    EXPECT_EQ(client.get("/nothing").status, 404);
    EXPECT_EQ(client.post("/v1/completions", asked("", 8)).status, 422);
  }
  // Two requests in one piece are answered one after the other.
  const std::string body = asked("The", 4).dump();
  const std::string one =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body;
  client.send(one + one + "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(client.answer().json()["choices"][0]["text"], text_alone("The", 4));
  }
  EXPECT_EQ(client.answer().json()["status"], "ok");
  client.ask("GET", "/health", "", "", "Connection: close\r\nX-Request-Id: my-id\r\n");
  const Got last = client.answer();
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_EQ(last.headers.at("x-request-id"), "my-id");
  EXPECT_TRUE(client.closed());
}

TEST(HttpTest, AStreamComesAsItIsWritten) {
  HttpHouse house(model());
  Client client(house.port());
  const Got got = client.post("/v1/completions", asked("The state", 30, true));
  EXPECT_EQ(got.headers.at("content-type"), "text/event-stream");
  EXPECT_EQ(streamed_text(got.body), text_alone("The state", 30));
  client.ask("POST", "/v1/completions", endless().dump());
  EXPECT_EQ(client.head().status, 200);
  for (int i = 0; i < 5; ++i) EXPECT_THAT(client.read_chunk(), HasSubstr("data: "));
  EXPECT_EQ(house.engine().counts().running, 1);
  client.hang_up();
  house.wait_until_idle();
}

TEST(HttpTest, WhoeverHangsUpStopsItsText) {
  HttpHouse house(model());
  Json whole = endless();
  whole["stream"] = false;
  {
    Client client(house.port());
    client.ask("POST", "/v1/completions", whole.dump());
    while (house.engine().counts().running == 0) std::this_thread::yield();
  }
  house.wait_until_idle();
}

// What it does not take is not kept for ever.
TEST(HttpTest, WhoeverDoesNotReadIsLeft) {
  EngineOptions options;
  options.capacity = 100;
  HttpHouse house(model(), {}, options);
  Client client(house.port());
  client.ask("POST", "/v1/completions", endless(100).dump());
  Client other(house.port());
  EXPECT_EQ(other.post("/v1/completions", asked("The", 4)).status, 200);
  house.wait_until_idle();
}

TEST(HttpTest, OldClientsAreAnswered) {
  HttpHouse house(model());
  Client client(house.port());
  client.send("GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(client.answer().json()["status"], "ok");
  EXPECT_TRUE(client.closed());
  Client streaming(house.port());
  const std::string body = asked("The state", 9, true).dump();
  streaming.send(
      "POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const Got got = streaming.answer();
  EXPECT_EQ(got.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(streamed_text(got.body), text_alone("The state", 9));
}

TEST(HttpTest, BrokenRequestsAreRefused) {
  CoreOptions core;
  core.most_json = 1000;
  core.most_state = 5000;
  HttpHouse house(model(), {}, {}, core);
  const auto status = [&](const std::string& bytes) {
    Client client(house.port());
    client.send(bytes);
    const Got got = client.answer();
    if (got.status != 0) {
      EXPECT_TRUE(got.json().at("error").at("message").is_string());
      EXPECT_TRUE(client.closed()) << "what follows cannot be told from the rest of that";
    }
    return got.status;
  };
  const std::string host = "Host: localhost\r\n";
  const std::string post = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n";
  EXPECT_EQ(status("GARBAGE\r\n\r\n"), 400);
  EXPECT_EQ(status("GET / HTTP/9.9\r\n\r\n"), 400);
  EXPECT_EQ(status("GET / HTTP/1.1\r\nno colon\r\n\r\n"), 400);
  EXPECT_EQ(status(std::string("GET /\0x HTTP/1.1\r\n\r\n", 20)), 400);
  EXPECT_EQ(status(post + host + "Content-Length: x\r\n\r\n"), 400);
  EXPECT_EQ(status(post + host + "Content-Length: -1\r\n\r\n"), 400);
  EXPECT_EQ(status(post + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 400);
  EXPECT_EQ(
      status(post + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
      400);
  EXPECT_EQ(status(post + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"), 400);
  EXPECT_EQ(status(post + host + "Content-Length: 1001\r\n\r\n"), 413);
  EXPECT_EQ(status(post + host + "Content-Length: 18446744073709551615\r\n\r\n"), 413);
  EXPECT_EQ(
      status(post + host + "Transfer-Encoding: chunked\r\n\r\n1000\r\n" + std::string(4096, ' ')),
      413);
  EXPECT_EQ(status("PUT /states HTTP/1.1\r\n" + host + "Content-Length: 5001\r\n\r\n"), 413);
  EXPECT_EQ(status("GET / HTTP/1.1\r\nX: " + std::string(20000, 'x')), 431);
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 5000; ++i) many += "X-" + std::to_string(i) + ": y\r\n";
  EXPECT_EQ(status(many), 431);
  EXPECT_EQ(status(post + "Host: evil.example\r\nContent-Length: 5\r\n\r\nabcde"), 403);
  EXPECT_EQ(status("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"), 403) << "no Host";
  // Nobody else notices.
  Client client(house.port());
  EXPECT_EQ(client.get("/health").status, 200);
}

TEST(HttpTest, ABodyIsAskedForWhereAClientWaitsForThat) {
  HttpHouse house(model());
  Client client(house.port());
  const std::string body = asked("The", 4).dump();
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: "
      "100-continue\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n";
  client.send(head);
  EXPECT_EQ(client.head().status, 100);
  client.send(body);
  EXPECT_EQ(client.answer().json()["choices"][0]["text"], text_alone("The", 4));
}

TEST(HttpTest, SlowClientsAreLeft) {
  HttpOptions http;
  http.idle_seconds = 1;
  HttpHouse house(model(), http);
  const auto begin = std::chrono::steady_clock::now();
  Client silent(house.port());
  Client half(house.port());
  half.send("GET /health HTTP/1.1\r\nHost: local");
  Client body(house.port());
  body.ask("POST", "/v1/completions", "");
  Client incomplete(house.port());
  incomplete.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_TRUE(silent.closed());
  EXPECT_TRUE(half.closed());
  EXPECT_TRUE(incomplete.closed());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  // A text that takes longer than that is written to its end.
  Client writer(house.port());
  writer.ask("POST", "/v1/completions", endless().dump());
  EXPECT_EQ(writer.head().status, 200);
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2500);
  while (std::chrono::steady_clock::now() < until) ASSERT_NE(writer.read_chunk(), "");
}

TEST(HttpTest, LimitsOfAClientAndOfAll) {
  HttpOptions http;
  http.requests_a_client = 2;
  http.connections = 4;
  HttpHouse house(model(), http);
  std::vector<Client> writers;
  for (int i = 0; i < 2; ++i) {
    writers.emplace_back(house.port());
    writers.back().ask("POST", "/v1/completions", endless().dump());
    EXPECT_EQ(writers.back().head().status, 200);
  }
  Client third(house.port());
  const Got refused = third.get("/health");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  writers.pop_back();
  house.wait_until_idle_but(1);
  EXPECT_EQ(third.get("/health").status, 200);
  // A fifth connection waits until there is room.
  Client fourth(house.port());
  EXPECT_EQ(fourth.get("/health").status, 200);
  Client fifth(house.port());
  EXPECT_EQ(fifth.get("/health").status, 200);
  Client sixth(house.port());
  sixth.ask("GET", "/health");
  std::atomic<bool> room{false};
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    room = true;
    fifth.hang_up();
  });
  EXPECT_EQ(sixth.answer().status, 200);
  EXPECT_TRUE(room) << "it was answered before";
  later.join();
}

TEST(HttpTest, FinishesWhatRunsAndRefusesWhatComes) {
  auto house = std::make_unique<HttpHouse>(model());
  Client idle(house->port());
  EXPECT_EQ(idle.get("/health").status, 200);
  Client writer(house->port());
  writer.ask("POST", "/v1/completions", asked("The state", 3000, true).dump());
  EXPECT_EQ(writer.head().status, 200);
  house->begin_to_end();
  EXPECT_TRUE(idle.closed());
  std::string events;
  for (std::string chunk = writer.read_chunk(); !chunk.empty(); chunk = writer.read_chunk()) {
    events += chunk;
  }
  EXPECT_EQ(streamed_text(events), text_alone("The state", 3000));
  EXPECT_TRUE(writer.closed());
  EXPECT_THROW(
      {
        Client late(house->port());
        if (late.get("/health").status == 0) throw std::runtime_error("closed");
      },
      std::runtime_error);
  house.reset();
}

TEST(HttpTest, AUnixSocketIsItsOwners) {
  const TemporaryFolder folder;
  HttpOptions http;
  http.unix_path = folder.file("socket");
  {
    HttpHouse house(model(), http);
    struct stat status = {};
    ASSERT_EQ(stat(http.unix_path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0600u);
    Client client(http.unix_path);
    client.send("GET /health HTTP/1.1\r\nHost: anything\r\n\r\n");
    EXPECT_EQ(client.answer().status, 200);
    EXPECT_THROW(HttpHouse(model(), http), mamba::Error) << "somebody listens there";
    EXPECT_EQ(Client(http.unix_path).get("/health").status, 200);
  }
  struct stat status = {};
  EXPECT_NE(stat(http.unix_path.c_str(), &status), 0);
  const int stale = socket(AF_UNIX, SOCK_STREAM, 0);  // of a server that was killed
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  std::strncpy(at.sun_path, http.unix_path.c_str(), sizeof at.sun_path - 1);
  ASSERT_EQ(bind(stale, reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
  close(stale);
  HttpHouse house(model(), http);
  EXPECT_EQ(Client(http.unix_path).get("/health").status, 200);
}

TEST(HttpTest, AnAddressThatIsTakenIsAnError) {
  HttpHouse house(model());
  HttpOptions http;
  http.port = house.port();
  EXPECT_THROW(HttpServer(house.core(), http), mamba::Error);
  http.host = "no address";
  EXPECT_THROW(HttpServer(house.core(), http), mamba::Error);
}

TEST(HttpTest, StatesGoUpAndDown) {
  HttpHouse house(model());
  Client client(house.port());
  const std::string id = client.post("/states", {{"prompt", "The state"}}).json()["id"];
  const Got content = client.get("/states/" + id + "/content");
  EXPECT_EQ(content.status, 200);
  client.ask("GET", "/states/" + id + "/content", "", "",
             "If-None-Match: " + content.headers.at("etag") + "\r\n");
  EXPECT_EQ(client.answer().status, 304);
  client.ask("PUT", "/states", content.body, "application/octet-stream");
  const Got put = client.answer();
  ASSERT_EQ(put.status, 201) << put.body;
  const std::string copy = put.json()["id"];
  EXPECT_EQ(client.get("/states/" + copy + "/content").body, content.body);
  const Json on{{"max_tokens", 9}, {"temperature", 0}};
  EXPECT_EQ(client.post("/states/" + copy + "/generate", on).json()["text"],
            text_alone("The state", 9));
  client.ask("DELETE", "/states/" + copy);
  EXPECT_EQ(client.answer().status, 204);
  EXPECT_EQ(client.get("/health").status, 200) << "nothing came behind the 204";
}

TEST(HttpTest, PagesOfTheOriginsThatMayAskReadTheAnswer) {
  CoreOptions core;
  core.origins = {"https://good.example"};
  HttpHouse house(model(), {}, {}, core);
  Client client(house.port());
  client.ask("GET", "/health", "", "", "Origin: https://good.example\r\n");
  EXPECT_EQ(client.answer().headers.at("access-control-allow-origin"), "https://good.example");
  client.ask("GET", "/health", "", "", "Origin: https://evil.example\r\n");
  EXPECT_EQ(client.answer().status, 403);
}

TEST(HttpTest, ThreadsOfClientsGetWhatEachWouldAlone) {
  EngineOptions options;
  options.capacity = 4;
  HttpHouse house(model(), {}, options);
  const std::vector<std::string> prompts = {"The state", "A", "In the", "Blessed"};
  std::vector<std::string> expected;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    expected.push_back(text_alone(prompts[i], 10 + static_cast<std::int64_t>(i)));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      Client client(house.port());
      for (int i = 0; i < 12; ++i) {
        const auto which = static_cast<std::size_t>(t + i) % prompts.size();
        const auto count = 10 + static_cast<std::int64_t>(which);
        const bool stream = i % 2 == 0;
        const Got got = client.post("/v1/completions", asked(prompts[which], count, stream));
        EXPECT_EQ(got.status, 200);
        EXPECT_EQ(
            stream ? streamed_text(got.body) : got.json()["choices"][0]["text"].get<std::string>(),
            expected[which]);
        Client gone(house.port());
        gone.ask("POST", "/v1/completions", endless().dump());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  house.wait_until_idle();
}

}  // namespace
}  // namespace server
