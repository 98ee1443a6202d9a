// Stop strings as a user of the programs sees them, with tokens of several characters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "child.hpp"
#include "generate/bpe_model.hpp"

namespace {

using mamba::testing::BpeModel;
using mamba::testing::pieces_with_stops;
using mamba::testing::TemporaryFolder;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

class StopTest : public ProgramTest {
 protected:
  Finished generate(const Arguments& more) const {
    Arguments arguments = {"generate", folder_.path(), "--threads", "1"};
    arguments.insert(arguments.end(), on_.begin(), on_.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }

  TemporaryFolder folder_;
  BpeModel bpe_{folder_.path(), pieces_with_stops()};
};

TEST_F(StopTest, endsInsideOfATokenAndAcrossTokens) {
  everywhere([&] {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {".", "b."}, {"\n", "b.\"c\n"}, {"c\n  ", "b.\"c\n  "}, {"an", "b.\"c\n    d an"}};
    for (const auto& [stop, text] : cases) {
      const Arguments asked = {"--prompt", "A", "-n", "12", "--stop", stop};
      EXPECT_EQ(generate(asked).out, text);
      Arguments helped = asked;
      helped.insert(helped.end(), {"--draft", folder_.path()});
      EXPECT_EQ(generate(helped).out, text);
    }
  });
}

TEST_F(StopTest, whatATokenHoldsBehindItComesWithTheNextRun) {
  everywhere([&] {
    const std::string state = folder_.file("state");
    const Finished first =
        generate({"--prompt", "A", "-n", "12", "--stop", ".", "--save-state", state});
    EXPECT_EQ(first.out, "b.");
    const Finished rest = generate({"--resume", state, "-n", "10", "--as", "text"});
    EXPECT_EQ(rest.code, 0) << rest.err;
    EXPECT_EQ(first.out + rest.out, bpe_.text(1, bpe_.pieces.size()));
  });
}

TEST_F(StopTest, endsAnswersOfServe) {
  Child child({folder_.path(), "--lines", "--threads", "1"}, false, place_of(MAMBA_SERVER));
  child.write(R"({"id":1,"prompt":"A","max_tokens":12,"stop":["."]})"
              "\n");
  child.write(R"({"id":2,"prompt":"A","max_tokens":12,"stop":["d an"]})"
              "\n");
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr(R"({"id":1,"text":"."})"));
  EXPECT_THAT(finished.out, HasSubstr(R"({"id":1,"done":"stop","prompt_tokens":1,"tokens":2})"));
  EXPECT_THAT(finished.out, HasSubstr(R"({"id":2,"text":" an"})"));
  EXPECT_THAT(finished.out, HasSubstr(R"({"id":2,"done":"stop","prompt_tokens":1,"tokens":6})"));
}

}  // namespace
