// Files appear whole, together where they belong together, and leave nothing behind.
#include "host/files/atomic_file.hpp"

#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "files.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::FullDisk;
using testing::names;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

mode_t mode_of(const std::string& path) {
  struct stat found;
  EXPECT_EQ(stat(path.c_str(), &found), 0);
  return found.st_mode & 07777;
}

TEST(AtomicFileTest, AReplacedFileKeepsItsMode) {
  const TemporaryFolder folder;
  const std::string path = folder.file("file");
  for (const mode_t mode : {0600, 0640, 0444, 0755, 0666}) {
    write_file(path, "old");
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
    const mode_t mask = umask(0077);
    save_text(path, "new");
    umask(mask);
    EXPECT_EQ(mode_of(path), mode);
    EXPECT_EQ(read_file(path), "new");
  }
  const mode_t mask = umask(0027);
  save_text(folder.file("fresh"), "new");
  umask(mask);
  EXPECT_EQ(mode_of(folder.file("fresh")), 0640u) << "a new one has what the umask leaves";
}

// A process that dies while it writes.
void be_killed_while_writing(const std::string& path) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicFile file("test", path);
    file.write("half", 4);
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
}

TEST(AtomicFileTest, WhatAKilledProcessLeftTheNextOneRemoves) {
  const TemporaryFolder folder;
  write_file(folder.file("file"), "old");
  be_killed_while_writing(folder.file("file"));
  be_killed_while_writing(folder.file("other"));  // it removes the first's
  ASSERT_EQ(names(folder).size(), 2u);
  EXPECT_EQ(read_file(folder.file("file")), "old");
  save_text(folder.file("new"), "text");
  EXPECT_EQ(names(folder), (std::vector<std::string>{"file", "new"}));
}

TEST(AtomicFileTest, WhatIsBeingWrittenIsLeftAlone) {
  const TemporaryFolder folder;
  AtomicFile file("test", folder.file("file"));
  file.write("whole", 5);
  remove_stale_temporaries(folder.path());
  file.commit();
  EXPECT_EQ(read_file(folder.file("file")), "whole");
  EXPECT_EQ(names(folder), std::vector<std::string>{"file"});
}

// Those who clean up and those who write do not fear each other, whatever comes first.
TEST(AtomicFileTest, WritersAndThoseWhoCleanUpMayMeet) {
  const TemporaryFolder folder;
  std::atomic<bool> done{false};
  std::vector<std::thread> cleaners;
  for (int i = 0; i < 2; ++i) {
    cleaners.emplace_back([&] {
      while (!done) remove_stale_temporaries(folder.path());
    });
  }
  for (int i = 0; i < 500; ++i) {
    EXPECT_NO_THROW(save_text(folder.file("file"), std::to_string(i)));
    EXPECT_EQ(read_file(folder.file("file")), std::to_string(i));
  }
  done = true;
  for (std::thread& cleaner : cleaners) cleaner.join();
  EXPECT_EQ(names(folder), std::vector<std::string>{"file"});
}

// Weights and configuration are both new or both old.
TEST(AtomicFileTest, AModelIsSavedAsOneChange) {
  const TemporaryFolder folder;
  LanguageModelConfig config;
  config.layer.d_model = 8;
  config.n_layer = 1;
  config.vocab_size = 16;
  LanguageModel::random(config, 1).save(folder.path());
  const auto both = [&] {
    return read_file(folder.file("model.safetensors")) + read_file(folder.file("config.json"));
  };
  const std::string before = both();
  config.n_layer = 2;
  const LanguageModel other = LanguageModel::random(config, 2);
  const auto weights = static_cast<rlim_t>(read_file(folder.file("model.safetensors")).size());
  for (const rlim_t bytes : {rlim_t{10}, weights}) {
    const FullDisk full(bytes);
    EXPECT_THROW(other.save(folder.path()), Error);
    EXPECT_EQ(both(), before);
  }
  std::filesystem::rename(folder.file("config.json"), folder.file("kept"));
  std::filesystem::create_directory(folder.file("config.json"));  // it cannot be replaced
  const std::string weights_before = read_file(folder.file("model.safetensors"));
  EXPECT_THROW(other.save(folder.path()), Error);
  EXPECT_EQ(read_file(folder.file("model.safetensors")), weights_before);
  std::filesystem::remove(folder.file("config.json"));
  other.save(folder.path());
  EXPECT_EQ(LanguageModel::load(folder.path()).config().n_layer, 2);
  EXPECT_EQ(names(folder).size(), 3u);
}

}  // namespace
}  // namespace mamba
