// States as resources: none ever changes, each is valid at any token, and their files outlive the
// process.
#include "server/states.hpp"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>

#include <mamba/safetensors.hpp>

#include "core_fixture.hpp"
#include "files.hpp"
#include "generate/texts.hpp"

namespace server {
namespace {

using mamba::testing::bytes_model;
using mamba::testing::lively;
using mamba::testing::TemporaryFolder;
using testing::Answer;
using ::testing::HasSubstr;
using testing::Inside;
using testing::model;
using testing::of_bytes;
using testing::text_alone;
using testing::with;

Json lively_fields(std::uint64_t seed, std::int64_t count) {
  return with(testing::lively_fields(seed), {{"max_tokens", count}});
}

Json greedy(std::int64_t count) { return {{"temperature", 0}, {"max_tokens", count}}; }

std::string id_of(const std::shared_ptr<Answer>& answer) {
  EXPECT_EQ(answer->status(), 201) << answer->whole->body;
  return answer->json().value("id", "");
}

std::string content_of(Inside& inside, const std::string& id) {
  const auto answer = inside.ask(Inside::get("/states/" + id + "/content"));
  EXPECT_EQ(answer->status(), 200);
  const mamba::Bytes& content = *answer->whole->bytes;
  return {reinterpret_cast<const char*>(content.data()), content.size()};
}

std::shared_ptr<Answer> put(Inside& inside, const std::string& content) {
  Request request = Inside::get("/states", "PUT");
  request.headers["content-type"] = "application/octet-stream";
  request.body = content;
  return inside.ask(request);
}

// ---- made and gone on from ----

TEST(StatesTest, AreAForestOfTexts) {
  Inside inside(model());
  const auto made = inside.post_to("/states", {{"prompt", "The state"}});
  const std::string root = id_of(made);
  EXPECT_EQ(made->json()["tokens"], 9);
  EXPECT_EQ(made->json()["parent"], nullptr);
  EXPECT_GT(made->json()["bytes"], 1000);
  EXPECT_GT(made->json()["created"], 1600000000);
  EXPECT_EQ(made->whole->headers.front().second, "/states/" + root);
  const std::string child =
      id_of(inside.post_to("/states", {{"prompt", {32, 111}}, {"from", root}}));
  const Json written = inside.post_to("/states/" + child + "/generate", greedy(5))->json();
  EXPECT_EQ(written["state"]["parent"], child);
  EXPECT_EQ(written["state"]["tokens"], 16);

  const Json all = inside.ask(Inside::get("/states"))->json();
  ASSERT_EQ(all["states"].size(), 3u);
  EXPECT_EQ(all["states"][0]["id"], root);
  EXPECT_EQ(all["states"][1]["parent"], root);
  EXPECT_EQ(all["states"][2], written["state"]);
  EXPECT_EQ(inside.ask(Inside::get("/states/" + child))->json(), all["states"][1]);
  const Json text = inside.ask(Inside::get("/states/" + child + "/text"))->json();
  EXPECT_EQ(text["text"], "The state o");
  EXPECT_EQ(text["tokens"].size(), 11u);
  EXPECT_EQ(text["texts"][10], "o");

  EXPECT_EQ(inside.ask(Inside::get("/states/" + root, "DELETE"))->status(), 204);
  EXPECT_EQ(inside.ask(Inside::get("/states/" + root, "DELETE"))->status(), 404);
  EXPECT_EQ(inside.ask(Inside::get("/states"))->json()["states"].size(), 2u);
  const auto orphan = inside.post_to("/states/" + child + "/generate", greedy(5));
  EXPECT_EQ(orphan->json()["text"], written["text"]) << "children work without their parents";
}

// In one go or in two, again and again, with the same seed: the same text.
TEST(StatesTest, AreGoneOnFromAsIfNothingHadStopped) {
  Inside inside(model());
  const std::string whole = text_alone("The state", 30, lively(9));
  const std::string root = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
  for (int again = 0; again < 2; ++again) {
    const Json first =
        inside.post_to("/states/" + root + "/generate", lively_fields(9, 12))->json();
    const std::string middle = first["state"]["id"];
    const Json second =
        inside.post_to("/states/" + middle + "/generate", lively_fields(9, 18))->json();
    EXPECT_EQ(first["text"].get<std::string>() + second["text"].get<std::string>(), whole);
    EXPECT_EQ(first["tokens"].size(), 12u);
    EXPECT_EQ(first["finish_reason"], "length");
    EXPECT_EQ(first["seed"], 9);
  }
  const Json drawn = inside.post_to("/states/" + root + "/generate", {{"max_tokens", 30}})->json();
  Json same = {{"max_tokens", 30}, {"seed", drawn["seed"]}};
  EXPECT_EQ(inside.post_to("/states/" + root + "/generate", same)->json()["text"], drawn["text"])
      << "the seed that was drawn is told";
}

// A character of which one answer has the first half comes whole in the next.
TEST(StatesTest, HalfACharacterGoesAlong) {
  Inside inside(model());
  const std::string root = id_of(inside.post_to("/states", {{"prompt", "A"}}));
  const Json first = inside
                         .post_to("/states/" + root + "/generate",
                                  {{"max_tokens", 1}, {"logit_bias", {{"195", 100}}}})
                         ->json();
  EXPECT_EQ(first["text"], "");
  const std::string middle = first["state"]["id"];
  const Json second = inside
                          .post_to("/states/" + middle + "/generate",
                                   {{"max_tokens", 1}, {"logit_bias", {{"169", 100}}}})
                          ->json();
  EXPECT_EQ(second["text"], "\xC3\xA9");
}

TEST(StatesTest, StreamEveryTokenWithItsPosition) {
  Inside inside(model());
  const std::string root = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
  Json asked = lively_fields(3, 10);
  asked["stream"] = true;
  asked["n"] = 2;
  const auto answer = inside.post_to("/states/" + root + "/generate", asked);
  std::string texts[2];
  Ids tokens[2];
  int ends = 0;
  for (const Json& event : answer->list()) {
    const int index = event["index"];
    texts[index] += event["text"];
    if (event.contains("token")) {
      EXPECT_EQ(event["position"], 9 + tokens[index].size());
      tokens[index].push_back(event["token"]);
    } else {
      ++ends;
      EXPECT_EQ(event["finish_reason"], "length");
      EXPECT_EQ(event["state"]["tokens"], 19);
      EXPECT_EQ(event["state"]["parent"], root);
    }
  }
  EXPECT_EQ(ends, 2);
  EXPECT_EQ(texts[0], text_alone("The state", 10, lively(3)));
  EXPECT_EQ(texts[1], text_alone("The state", 10, lively(4)));
  asked["stream"] = false;
  const Json whole = inside.post_to("/states/" + root + "/generate", asked)->json();
  ASSERT_EQ(whole["choices"].size(), 2u);
  EXPECT_EQ(whole["choices"][1]["text"], texts[1]);
  EXPECT_EQ(whole["choices"][1]["tokens"], tokens[1]);
}

// ---- rewound ----

void expect_close(const mamba::StackState& a, const mamba::StackState& b) {
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_LT(mamba::testing::relative_error(mamba::testing::values(a.layers[i].ssm),
                                             mamba::testing::values(b.layers[i].ssm)),
              1e-5);
    EXPECT_LT(mamba::testing::relative_error(mamba::testing::values(a.layers[i].conv),
                                             mamba::testing::values(b.layers[i].conv)),
              1e-5);
  }
}

TEST(StatesTest, RewindToAnyToken) {
  Inside inside(model());
  const std::string prompt = std::string(300, 'a') + "The state";
  const std::string root = id_of(inside.post_to("/states", {{"prompt", prompt}}));
  const Json written =
      inside.post_to("/states/" + root + "/generate", lively_fields(3, 150))->json();
  const std::string last = written["state"]["id"];
  Ids path = of_bytes.encode(prompt);
  for (const Json& token : written["tokens"]) path.push_back(token);
  ASSERT_EQ(path.size(), 459u);
  for (const std::size_t tokens : {1u, 255u, 256u, 308u, 309u, 310u, 383u, 385u, 458u, 459u}) {
    SCOPED_TRACE(tokens);
    const auto answer = inside.post_to("/states/" + last + "/rewind", {{"tokens", tokens}});
    ASSERT_EQ(answer->status(), 201) << answer->whole->body;
    const Json json = answer->json();
    EXPECT_EQ(json["tokens"], tokens);
    EXPECT_EQ(json["parent"], tokens == 459 ? Json(last) : tokens >= 309 ? Json(root) : Json());
    EXPECT_LT(json["read_again"], 256);
    if (tokens > 309) {
      EXPECT_LT(json["read_again"], 64);
    }
    const auto state = inside.states().get(json["id"]);
    const Ids beginning(path.begin(), path.begin() + static_cast<long>(tokens));
    EXPECT_EQ(state->path, beginning);
    mamba::Generator read(model());
    read.read(beginning);
    expect_close(state->snapshot.state(), read.state());
    mamba::GenerateOptions options;
    options.max_tokens = 8;
    EXPECT_EQ(inside.post_to("/states/" + json["id"].get<std::string>() + "/generate", greedy(8))
                  ->json()["tokens"]
                  .get<Ids>(),
              read.generate(options).tokens);
  }
  const auto refused = [&](const Json& body) {
    return inside.post_to("/states/" + last + "/rewind", body)->status();
  };
  EXPECT_EQ(refused({{"tokens", 0}}), 422);
  EXPECT_EQ(refused({{"tokens", 460}}), 422);
  EXPECT_EQ(refused({{"tokens", "1"}}), 422);
  EXPECT_EQ(refused(Json::object()), 422);
}

// ---- downloaded and uploaded ----

TEST(StatesTest, GoToAnotherServerAndOnThere) {
  Inside here(model());
  Inside there(model());
  const std::string root = id_of(here.post_to("/states", {{"prompt", "The state"}}));
  const std::string last =
      here.post_to("/states/" + root + "/generate", lively_fields(9, 12))->json()["state"]["id"];
  const auto answer = here.ask(Inside::get("/states/" + last + "/content"));
  EXPECT_EQ(answer->whole->content_type, "application/octet-stream");
  const std::string tag = answer->whole->headers.at(0).second;
  EXPECT_EQ(answer->whole->headers.at(0).first, "ETag");
  EXPECT_EQ(tag.size(), 34u);
  const std::string content = content_of(here, last);
  Request again = Inside::get("/states/" + last + "/content");
  again.headers["if-none-match"] = tag;
  EXPECT_EQ(here.ask(again)->status(), 304);
  again.headers["if-none-match"] = "\"other\"";
  EXPECT_EQ(here.ask(again)->status(), 200);

  const std::string moved = id_of(put(there, content));
  EXPECT_EQ(content_of(there, moved), content);
  const Json rest = there.post_to("/states/" + moved + "/generate", lively_fields(9, 18))->json();
  EXPECT_EQ(rest["text"],
            here.post_to("/states/" + last + "/generate", lively_fields(9, 18))->json()["text"]);
  const Json back = there.post_to("/states/" + moved + "/rewind", {{"tokens", 9}})->json();
  EXPECT_EQ(back["read_again"], 9) << "nothing of it is known there";
  EXPECT_EQ(there.post_to("/states/" + back["id"].get<std::string>() + "/generate", greedy(9))
                ->json()["text"],
            here.post_to("/states/" + root + "/generate", greedy(9))->json()["text"]);
}

TEST(StatesTest, WhatIsNoStateOfThisModelIsRefused) {
  Inside inside(model());
  const std::string id = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
  const std::string good = content_of(inside, id);
  const auto refused = [&](const std::string& content, int status, const char* text) {
    const auto answer = put(inside, content);
    EXPECT_EQ(answer->status(), status) << answer->whole->body.substr(0, 300);
    EXPECT_THAT(answer->error(), HasSubstr(text));
    EXPECT_EQ(answer->param(), "body");
  };
  refused("", 422, "expected");
  for (std::size_t size = 0; size < good.size(); size += 997)
    refused(good.substr(0, size), 422, "");
  for (std::size_t at = 0; at < good.size(); at += 1009) {
    std::string damaged = good;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x11);
    refused(damaged, 422, "");
  }
  const auto as_text = [](const mamba::Bytes& content) {
    return std::string(reinterpret_cast<const char*>(content.data()), content.size());
  };
  // Whole files, with a right hash, of something else.
  const mamba::GeneratorSnapshot& snapshot = inside.states().get(id)->snapshot;
  refused(as_text(mamba::save(snapshot.state())), 422, "a bare state");
  refused(as_text(snapshot.save()), 422, "path.ids");
  const auto with_path = [&](const mamba::Tensor& path) {
    return as_text(snapshot.save({{"path.ids", path}}));
  };
  refused(with_path(mamba::Tensor::from<std::int32_t>({1, 2})), 422, "a path of 9 tokens, got 2");
  refused(with_path(mamba::Tensor::from(Ids(9, 256))), 422, "ids from 0 to 255, got 256");
  refused(with_path(mamba::Tensor::from(Ids(9, -1))), 422, "got -1");
  refused(with_path(mamba::Tensor::from(std::vector<float>(9, 1.f))), 422, "I32");
  const mamba::LanguageModel halves = bytes_model(mamba::Device::cpu(), mamba::DType::bf16);
  Inside other_dtype(halves);
  refused(content_of(other_dtype, id_of(other_dtype.post_to("/states", {{"prompt", "A"}}))), 409,
          "bf16");
  const mamba::LanguageModel stranger = bytes_model(mamba::MixerKind::mamba2, mamba::Device::cpu());
  Inside other(stranger);
  refused(content_of(other, id_of(other.post_to("/states", {{"prompt", "A"}}))), 409,
          "one of another");
  Request typed = Inside::get("/states", "PUT");
  typed.headers["content-type"] = "application/json";
  typed.body = good;
  EXPECT_EQ(inside.ask(typed)->status(), 415);
  EXPECT_EQ(inside.ask(Inside::get("/states"))->json()["states"].size(), 1u);
}

// ---- looked into ----

TEST(StatesTest, AreLookedInto) {
  Inside inside(model());
  const std::string a = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
  const std::string b = id_of(inside.post_to("/states", {{"prompt", "A town"}}));
  const auto& state = inside.states().get(a)->snapshot.state();
  const Json layers = inside.ask(Inside::get("/states/" + a + "/layers"))->json()["layers"];
  ASSERT_EQ(layers.size(), state.layers.size());
  const auto ssm = state.layers[1].ssm.to_vector<float>();
  double sum = 0;
  for (const float value : ssm) sum += double{value} * value;
  EXPECT_NEAR(layers[1]["ssm"].get<double>(), std::sqrt(sum / static_cast<double>(ssm.size())),
              1e-9);

  const Json diff = inside.ask(Inside::get("/states/" + a + "/diff/" + b))->json()["layers"];
  const auto other = inside.states().get(b)->snapshot.state().layers[1].ssm.to_vector<float>();
  double square = 0;
  for (std::size_t i = 0; i < ssm.size(); ++i) square += std::pow(double{ssm[i]} - other[i], 2);
  EXPECT_NEAR(diff[1]["ssm"].get<double>(), std::sqrt(square), 1e-9);
  const Json none = inside.ask(Inside::get("/states/" + a + "/diff/" + a))->json()["layers"];
  EXPECT_EQ(none[0]["conv"], 0);

  const Json map = inside.ask(Inside::get("/states/" + a + "/map?layer=1"))->json();
  EXPECT_EQ(map["layer"], 1);
  ASSERT_EQ(map["values"].size(), map["rows"].get<std::size_t>());
  ASSERT_EQ(map["values"][0].size(), map["columns"].get<std::size_t>());
  const std::int64_t channels = state.layers[1].ssm.dim(1), width = state.layers[1].ssm.dim(2);
  const std::int64_t rows = map["rows"];
  double first = 0, count = 0;  // of the channels that its first row stands for
  for (std::int64_t i = 0; i < channels && i * rows / channels == 0; ++i, ++count) {
    first += std::pow(double{ssm[static_cast<std::size_t>(i * width)]}, 2);
  }
  EXPECT_NEAR(map["values"][0][0].get<double>(), std::sqrt(first / count), 1e-9);
  for (const char* query : {"", "?layer=", "?layer=99", "?layer=-1", "?layer=1x", "?x=1",
                            "?layer=99999999999999999999", "?layer=-99999999999999999999"}) {
    const auto refused = inside.ask(Inside::get("/states/" + a + "/map" + query));
    EXPECT_EQ(refused->status(), 422) << query;
    EXPECT_EQ(refused->param(), "layer");
  }
}

TEST(StatesTest, WhatIsNotThereIsNotFound) {
  Inside inside(model());
  const std::string a = id_of(inside.post_to("/states", {{"prompt", "A"}}));
  for (const char* path : {"/states/no", "/states/no/content", "/states/no/layers",
                           "/states/no/text", "/states/no/map?layer=0", "/states/", "/states//",
                           "/states/../x", "/states/%00/content", "", "states", "?", "*"}) {
    EXPECT_EQ(inside.ask(Inside::get(path))->status(), 404) << path;
  }
  EXPECT_EQ(inside.ask(Inside::get("/states/" + a + "/diff/no"))->status(), 404);
  EXPECT_EQ(inside.ask(Inside::get("/states/no/diff/" + a))->status(), 404);
  EXPECT_EQ(inside.ask(Inside::get("/states/" + a + "/no"))->status(), 404);
  EXPECT_EQ(inside.post_to("/states/no/generate", greedy(1))->status(), 404);
  EXPECT_EQ(inside.post_to("/states/no/rewind", {{"tokens", 1}})->status(), 404);
  const auto from = inside.post_to("/states", {{"prompt", "A"}, {"from", "no"}});
  EXPECT_EQ(from->status(), 404);
  EXPECT_EQ(from->param(), "from");
  EXPECT_EQ(inside.post_to("/states", {{"from", a}})->status(), 422);
  EXPECT_EQ(inside.post_to("/states", {{"prompt", ""}, {"from", a}})->status(), 422);
  EXPECT_EQ(inside.ask(Inside::get("/states/" + a + "/generate"))->status(), 405);
}

// ---- room and files ----

TEST(StatesTest, TheLeastRecentlyUsedGoFirst) {
  Inside probe(model());
  const auto made = probe.post_to("/states", {{"prompt", "A"}});
  const std::int64_t size = made->json()["bytes"];
  StoreOptions store;
  store.bytes = 3 * size + size / 2;
  Inside inside(model(), of_bytes, store);
  std::vector<std::string> ids;
  for (const char* prompt : {"A", "B", "C"}) {
    ids.push_back(id_of(inside.post_to("/states", {{"prompt", prompt}})));
  }
  inside.post_to("/states/" + ids[0] + "/generate", greedy(1));  // uses A, and is one more
  const auto status = [&](const std::string& id) {
    return inside.ask(Inside::get("/states/" + id))->status();
  };
  EXPECT_EQ(status(ids[0]), 200);
  EXPECT_EQ(status(ids[1]), 404);
  EXPECT_EQ(status(ids[2]), 200);
  EXPECT_LE(inside.states().bytes(), store.bytes);

  store.bytes = size / 2;
  Inside small(model(), of_bytes, store);
  const auto refused = small.post_to("/states", {{"prompt", "A"}});
  EXPECT_EQ(refused->status(), 413);
  EXPECT_THAT(refused->error(), HasSubstr("at most " + std::to_string(store.bytes) + " bytes"));
}

TEST(StatesTest, FilesOutliveTheServer) {
  const TemporaryFolder folder;
  StoreOptions store;
  store.folder = folder.file("states");
  std::vector<std::string> problems;
  store.on_problem = [&](const std::string& problem) { problems.push_back(problem); };
  std::string root, last, text;
  Json entries;
  {
    Inside inside(model(), of_bytes, store);
    root = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
    last = inside.post_to("/states/" + root + "/generate", lively_fields(9, 12))
               ->json()["state"]["id"];
    text = inside.post_to("/states/" + last + "/generate", lively_fields(9, 5))->json()["text"];
    entries = inside.ask(Inside::get("/states"))->json()["states"];
  }
  const mamba::LanguageModel stranger = bytes_model(mamba::MixerKind::mamba2, mamba::Device::cpu());
  std::string foreign;
  {
    Inside other(stranger, of_bytes, store);
    EXPECT_EQ(other.ask(Inside::get("/states"))->json()["states"].size(), 0u);
    foreign = id_of(other.post_to("/states", {{"prompt", "A"}}));
  }
  mamba::testing::write_file(folder.file("states/notes.txt"), "mine");
  mamba::testing::write_file(folder.file("states/0123456789abcdef01234567.safetensors"), "broken");
  {
    Inside inside(model(), of_bytes, store);
    const Json again = inside.ask(Inside::get("/states"))->json()["states"];
    ASSERT_EQ(again.size(), 3u);
    for (std::size_t i = 0; i < 3; ++i) {
      for (const char* field : {"id", "parent", "tokens"}) {
        EXPECT_EQ(again[i][field], entries[i][field]);
      }
    }
    EXPECT_EQ(problems.size(), 1u);
    EXPECT_EQ(inside.post_to("/states/" + last + "/generate", lively_fields(9, 5))->json()["text"],
              text);
    EXPECT_EQ(inside.post_to("/states/" + last + "/rewind", {{"tokens", 12}})->json()["read_again"],
              3);
  }
  {  // damaged since: it is told, and not there
    const std::string path = folder.file("states/" + root + ".safetensors");
    std::string content = mamba::testing::read_file(path);
    content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 1);
    mamba::testing::write_file(path, content);
    Inside inside(model(), of_bytes, store);
    EXPECT_EQ(inside.post_to("/states/" + root + "/generate", greedy(1))->status(), 404);
    EXPECT_EQ(problems.size(), 3u);
    EXPECT_EQ(inside.ask(Inside::get("/states/" + last, "DELETE"))->status(), 204);
    EXPECT_FALSE(
        std::filesystem::exists(folder.file("states/" + last + "-of-" + root + ".safetensors")));
  }
  Inside other(stranger, of_bytes, store);
  EXPECT_EQ(other.ask(Inside::get("/states/" + foreign))->status(), 200);
}

TEST(StatesTest, AFileThatCannotBeWrittenIsARefusal) {
  const TemporaryFolder folder;
  StoreOptions store;
  store.folder = folder.file("states");
  Inside inside(model(), of_bytes, store);
  const std::string root = id_of(inside.post_to("/states", {{"prompt", "The state"}}));
  {
    const mamba::testing::FullDisk full(100);
    EXPECT_EQ(inside.post_to("/states", {{"prompt", "B"}})->status(), 503);
    EXPECT_EQ(inside.post_to("/states/" + root + "/generate", greedy(2))->status(), 503);
  }
  EXPECT_EQ(inside.ask(Inside::get("/states"))->json()["states"].size(), 1u);
  EXPECT_EQ(inside.post_to("/states/" + root + "/generate", greedy(2))->status(), 200);
}

}  // namespace
}  // namespace server
