// mamba-server as its operator sees it: started, ended, killed, and what it says then.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "child.hpp"
#include "files.hpp"
#include "server/http_client.hpp"

namespace {

using mamba::testing::TemporaryFolder;
using server::testing::Client;
using server::testing::Got;
using server::testing::streamed_text;
using ::testing::HasSubstr;
using Json = nlohmann::json;

class ServerHttp : public ProgramTest {
 protected:
  std::unique_ptr<Child> start(std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--unix", socket_, "--dtype", "f32"});
    flags.insert(flags.end(), on_.begin(), on_.end());
    auto child = std::make_unique<Child>(flags, false, place_of(MAMBA_SERVER));
    child->wait_for_error("\"listening\"");
    return child;
  }
  Client client() const { return Client(socket_); }
  static void kill(Child& child) {
    child.signal(SIGKILL);
    child.wait_to_end();
    EXPECT_EQ(child.finish().code, -SIGKILL);
  }

  TemporaryFolder folder_;
  std::string socket_ = folder_.file("socket");
};

const Json greedy{{"max_tokens", 20}, {"temperature", 0}};

TEST_F(ServerHttp, AKillLosesNoStateThatWasAnswered) {
  everywhere([&] {
    const std::string states = folder_.file("states" + on_.back());
    std::vector<std::string> ids;
    std::string last;
    Json written;
    {
      const auto child = start({"--states", states, "--quiet"});
      Client asker = client();
      ids.push_back(asker.post("/states", {{"prompt", "And the king said"}}).json().at("id"));
      written = asker.post("/states/" + ids[0] + "/generate", greedy).json();
      last = written.at("state").at("id");
      for (int i = 0; i < 20; ++i) {
        ids.push_back(asker.post("/states", {{"prompt", std::string(1, 'a' + i)}}).json().at("id"));
      }
      asker.ask("POST", "/states/" + last + "/generate", greedy.dump());
      kill(*child);
    }
    const auto child = start({"--states", states, "--quiet"});
    Client asker = client();
    for (const std::string& id : ids) EXPECT_EQ(asker.get("/states/" + id).status, 200) << id;
    EXPECT_EQ(asker.get("/states/" + last).json(), written.at("state"));
    EXPECT_EQ(asker.post("/states/" + ids[0] + "/generate", greedy).json().at("text"),
              written.at("text"));
    const Json back = asker.post("/states/" + last + "/rewind", {{"tokens", 17}}).json();
    EXPECT_EQ(back.at("parent"), ids[0]);
    EXPECT_EQ(asker.post("/states/" + back.at("id").get<std::string>() + "/generate", greedy)
                  .json()
                  .at("text"),
              written.at("text"));
    child->signal(SIGTERM);
    EXPECT_EQ(child->finish().code, 0);
  });
}

TEST_F(ServerHttp, ATermFinishesWhatRuns) {
  everywhere([&] {
    const auto child = start({});
    Client asker = client();
    const Json asked{{"prompt", "And"}, {"max_tokens", 2000}, {"temperature", 0}, {"stream", true}};
    asker.ask("POST", "/v1/completions", asked.dump());
    EXPECT_EQ(asker.head().status, 200);
    child->signal(SIGTERM);
    std::string events;
    for (std::string chunk = asker.read_chunk(); !chunk.empty(); chunk = asker.read_chunk()) {
      events += chunk;
    }
    EXPECT_EQ(streamed_text(events).size(), 2000u);
    EXPECT_TRUE(asker.closed());
    const Finished finished = child->finish();
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_EQ(finished.out, "");
    std::istringstream lines(finished.err);
    int requests = 0;
    for (std::string line; std::getline(lines, line);) {
      const Json json = Json::parse(line);  // every line of it is JSON
      EXPECT_TRUE(json.contains("time"));
      if (!json.contains("status")) continue;
      ++requests;
      EXPECT_EQ(json.at("path"), "/v1/completions");
      EXPECT_EQ(json.at("tokens_written"), 2000);
      EXPECT_EQ(json.at("id").get<std::string>().rfind("req-", 0), 0u);
    }
    EXPECT_EQ(requests, 1);
    EXPECT_THAT(finished.err, HasSubstr("\"ended\""));
  });
}

TEST_F(ServerHttp, AKeyOfTheFileOpensIt) {
  const std::string keys = folder_.file("keys");
  mamba::testing::write_file(keys, "first\r\n\nsecond\n");
  const auto child = start({"--api-key-file", keys, "--quiet"});
  const auto status = [&](const std::string& key) {
    Client asker = client();
    asker.ask("GET", "/v1/models", "", "", "Authorization: Bearer " + key + "\r\n");
    return asker.answer().status;
  };
  EXPECT_EQ(status("first"), 200);
  EXPECT_EQ(status("second"), 200);
  EXPECT_EQ(status("third"), 401);
  child->signal(SIGINT);
  const Finished finished = child->finish();
  EXPECT_EQ(finished.code, 0);
  EXPECT_EQ(finished.err.find("\"status\""), std::string::npos) << "it was to be quiet";
}

TEST_F(ServerHttp, AWrongCommandLineIsOneLineAndExitCode1) {
  const auto refused = [&](const std::vector<std::string>& flags, const std::string& text) {
    const Finished finished = run(flags, place_of(MAMBA_SERVER));
    EXPECT_EQ(finished.code, 1);
    EXPECT_THAT(finished.err, HasSubstr(text));
    EXPECT_EQ(finished.err.find('\n'), finished.err.size() - 1) << finished.err;
  };
  mamba::testing::write_file(folder_.file("empty"), "\n");
  refused({"--api-key-file", folder_.file("none")}, "--api-key-file: expected a file with a key");
  refused({"--api-key-file", folder_.file("empty")}, "--api-key-file: expected a file with a key");
  refused({"--states", folder_.file("empty")}, "states: " + folder_.file("empty"));
  refused({"--state-bytes", "1000000000000000"}, "of memory of this machine, got");
  refused({"--host", "nowhere.example"}, "listen: expected an address");
  refused({"--host", "192.0.2.1", "--port", "0"}, "listen: expected an address");
  refused({"--port", "65536"}, "--port: expected a whole number from 0 to 65535");
  refused({"--unix", folder_.file("no/folder")}, "listen: expected an address");
  refused({"--unix", folder_.file(std::string(200, 'x'))}, "listen: expected an address");
}

}  // namespace
