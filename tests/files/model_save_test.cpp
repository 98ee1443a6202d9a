// Saving a model is one change, whenever the process that saves is killed.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <set>
#include <thread>

#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "files.hpp"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

// Model 1, 2, ...: each its own weights, and a config that differs in the ids that end a text.
LanguageModel numbered(std::int32_t number) {
  LanguageModelConfig config;
  config.layer.d_model = 16;
  config.n_layer = 2;
  config.vocab_size = 37;
  config.eos_token_ids = {number};
  return LanguageModel::random(config, static_cast<std::uint64_t>(number));
}

class ModelSave : public ::testing::Test {
 protected:
  std::string model() const { return folder_.file("model"); }
  std::string file(const std::string& name) const { return folder_.file("model/" + name); }

  // The number of the model that is there, whole.
  std::int32_t number() const {
    const LanguageModel loaded = LanguageModel::load(model());
    const auto& ids = loaded.config().eos_token_ids;
    if (ids.size() != 1) throw std::logic_error("no numbered model");
    EXPECT_EQ(loaded.fingerprint(), numbered(ids[0]).fingerprint()) << "a mixture";
    return ids[0];
  }

  // What is in the folder after the weights of model 2 have replaced those of model 1, and before
  // config.json has.
  void kill_between() {
    numbered(1).save(model());
    const std::string old_config = read_file(file("config.json"));
    numbered(2).save(model());
    fs::rename(file("config.json"), file("config.json.new"));
    write_file(file("config.json"), old_config);
  }

  // In a process of its own, which tests nothing more whatever happens.
  [[noreturn]] void save_forever(const LanguageModel* models, int count, int first) const noexcept {
    for (int i = first;; ++i) models[i % count].save(model());
  }

  TemporaryFolder folder_;
};

TEST_F(ModelSave, ReplacesConfigAndWeights) {
  numbered(1).save(model());
  EXPECT_EQ(number(), 1);
  numbered(2).save(model());
  EXPECT_EQ(number(), 2);
  numbered(2).save(model());
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(model())) {
    names.insert(entry.path().filename().string());
  }
  EXPECT_EQ(names, (std::set<std::string>{"config.json", "model.safetensors"}));
}

TEST_F(ModelSave, ShapesAreThosePublished) {
  for (const char* golden : {"base", "biased", "falcon"}) {
    const std::string from = testing::golden_folder(golden);
    LanguageModel::load(from).save(model());
    const SafetensorsFile published(from + "/model.safetensors"), saved(file("model.safetensors"));
    ASSERT_EQ(saved.entries().size(), published.entries().size()) << golden;
    for (const SafetensorsEntry& entry : published.entries()) {
      EXPECT_EQ(saved.entry(entry.name).shape, entry.shape) << golden << " " << entry.name;
    }
  }
}

TEST_F(ModelSave, KilledBeforeTheWeightsItIsTheOldModel) {
  numbered(2).save(folder_.file("other"));
  numbered(1).save(model());
  fs::copy(folder_.file("other/config.json"), file("config.json.new"));
  EXPECT_EQ(number(), 1);
  numbered(1).save(model());
  EXPECT_FALSE(fs::exists(file("config.json.new")));
  EXPECT_EQ(number(), 1);
}

TEST_F(ModelSave, KilledAfterTheWeightsItIsTheNewModel) {
  kill_between();
  EXPECT_EQ(number(), 2);
  fs::remove(file("config.json"));  // there was none before
  EXPECT_EQ(number(), 2);
}

// A third save must not take from the weights the config that had not got its name.
TEST_F(ModelSave, ASaveThatWasKilledIsFinishedByTheNext) {
  kill_between();
  {
    const testing::FullDisk full(100);
    EXPECT_THROW(numbered(3).save(model()), Error);
  }
  EXPECT_FALSE(fs::exists(file("config.json.new")));
  EXPECT_EQ(number(), 2);
  kill_between();
  numbered(3).save(model());
  EXPECT_EQ(number(), 3);
}

TEST_F(ModelSave, ADamagedConfigInWaitingIsNotTaken) {
  kill_between();
  std::string next = read_file(file("config.json.new"));
  write_file(file("config.json.new"), next.substr(0, next.size() / 2));
  EXPECT_EQ(LanguageModel::load(model()).config().eos_token_ids, (std::vector<std::int32_t>{1}));
  fs::remove(file("config.json"));
  EXPECT_THROW(LanguageModel::load(model()), FormatError);
}

TEST_F(ModelSave, AConfigThatIsChangedByHandCounts) {
  numbered(1).save(model());
  std::string text = read_file(file("config.json"));
  const std::string key = "\"eos_token_id\": 1";
  write_file(file("config.json"), text.replace(text.find(key), key.size(), "\"eos_token_id\": 7"));
  EXPECT_EQ(LanguageModel::load(model()).config().eos_token_ids, (std::vector<std::int32_t>{7}));
}

TEST_F(ModelSave, AKillAtAnyTimeLeavesOneWholeModel) {
  const LanguageModel models[] = {numbered(1), numbered(2), numbered(3)};
  models[0].save(model());
  testing::Random random(4);
  std::set<std::int32_t> seen;
  for (int kill_number = 0; kill_number < 40; ++kill_number) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_forever(models, 3, kill_number);
    std::this_thread::sleep_for(std::chrono::microseconds(random.integer(500, 60'000)));
    kill(child, SIGKILL);
    int status;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    seen.insert(number());
  }
  EXPECT_GT(seen.size(), 1u);
}

TEST_F(ModelSave, WhoReadsMeanwhileHasOneWholeModel) {
  const LanguageModel models[] = {numbered(1), numbered(2)};
  models[0].save(model());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) save_forever(models, 2, 0);
  for (int i = 0; i < 200; ++i) number();
  kill(child, SIGKILL);
  int status;
  ASSERT_EQ(waitpid(child, &status, 0), child);
}

TEST_F(ModelSave, FilesThatAreReplacedKeepTheirPermissions) {
  numbered(1).save(model());
  const auto mode = [&](const char* name) {
    struct stat status;
    EXPECT_EQ(stat(file(name).c_str(), &status), 0);
    return status.st_mode & 07777u;
  };
  for (const mode_t wanted : {0600u, 0664u, 0444u}) {
    ASSERT_EQ(chmod(file("config.json").c_str(), wanted), 0);
    ASSERT_EQ(chmod(file("model.safetensors").c_str(), wanted), 0);
    for (const std::int32_t next : {2, 3}) {
      numbered(next).save(model());
      EXPECT_EQ(mode("config.json"), wanted);
      EXPECT_EQ(mode("model.safetensors"), wanted);
    }
    save_text(file("config.json"), "{}");
    EXPECT_EQ(mode("config.json"), wanted);
    fs::remove(file("config.json"));
    numbered(1).save(model());
  }
}

}  // namespace
}  // namespace mamba
