#include "call.hpp"

#include <utility>

namespace server {

const char* reason_of(Finish reason) {
  if (reason == Finish::max_tokens) return "length";
  return reason == Finish::cancelled ? "cancelled" : "stop";
}

// Listens to one job of a call.
class Call::Ear : public Listener {
 public:
  Ear(std::shared_ptr<Call> call, int prompt, int first)
      : call_(std::move(call)), prompt_(prompt), first_(first) {}

  void read(const PromptRead& told) override { call_->read(prompt_, told); }
  void token(int choice, Token token) override {
    call_->count(first_ + choice);
    call_->token(first_ + choice, std::move(token));
  }
  void finished(int choice, Finished end) override {
    const Clocked& clock = call_->clocks_[static_cast<std::size_t>(first_ + choice)];
    if (clock.tokens > 1) {
      const std::chrono::duration<double> seconds = Clock::now() - clock.first;
      call_->core_.metrics().tokens_per_second(static_cast<double>(clock.tokens - 1) /
                                               seconds.count());
    }
    if (choice == 0) call_->account_->read += end.read;
    call_->finished(first_ + choice, std::move(end));
  }
  void failed(int choice, const std::string& why) override { call_->failed(first_ + choice, why); }

 private:
  std::shared_ptr<Call> call_;
  int prompt_, first_;
};

Call::Call(Core& core, std::shared_ptr<Account> account, std::shared_ptr<Reply> reply)
    : core_(core), account_(std::move(account)), reply_(std::move(reply)) {}

void Call::count(int choice) {
  Clocked& clock = clocks_[static_cast<std::size_t>(choice)];
  if (clock.tokens++ == 0) clock.first = Clock::now();
  if (!any_token_) {
    any_token_ = true;
    core_.metrics().first_token(std::chrono::duration<double>(clock.first - begun_).count());
  }
  ++account_->written;
}

Cancel Call::submit(std::vector<Job> jobs) {
  int choices = 0;
  for (const Job& job : jobs) choices += job.choices;
  clocks_.resize(static_cast<std::size_t>(choices));
  std::vector<std::shared_ptr<Listener>> ears;
  int first = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    ears.push_back(std::make_shared<Ear>(shared_from_this(), static_cast<int>(i), first));
    first += jobs[i].choices;
  }
  try {
    const std::vector<Engine::Ticket> tickets = core_.engine().submit(std::move(jobs), ears);
    return [&engine = core_.engine(), tickets] {
      for (const Engine::Ticket ticket : tickets) engine.cancel(ticket);
    };
  } catch (const QueueFull& full) {
    throw ApiError(429, full.what(), "", {{"Retry-After", "1"}});
  }
}

}  // namespace server
