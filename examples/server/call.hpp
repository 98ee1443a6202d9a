// One request that has texts written: its jobs, and what comes of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core.hpp"

namespace server {

// As OpenAI says it.
const char* reason_of(Finish reason);

// Choices are numbered through: those of the first prompt first. All of it comes on the engine's
// thread.
class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(Core& core, std::shared_ptr<Account> account, std::shared_ptr<Reply> reply);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  virtual ~Call() = default;

  // ApiError 429 where the queue has no room for all.
  Cancel submit(std::vector<Job> jobs);

 protected:
  virtual void read(int, const PromptRead&) {}
  virtual void token(int choice, Token token) = 0;
  virtual void finished(int choice, Finished end) = 0;
  virtual void failed(int choice, const std::string& why) = 0;

  Core& core() { return core_; }
  Reply& reply() { return *reply_; }

 private:
  class Ear;
  struct Clocked {
    Clock::time_point first;
    std::int64_t tokens = 0;
  };
  void count(int choice);

  Core& core_;
  std::shared_ptr<Account> account_;
  std::shared_ptr<Reply> reply_;
  Clock::time_point begun_ = Clock::now();
  bool any_token_ = false;
  std::vector<Clocked> clocks_;
};

}  // namespace server
