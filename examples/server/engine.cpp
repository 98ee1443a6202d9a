#include "engine.hpp"

#include <algorithm>
#include <iterator>
#include <new>
#include <utility>

namespace server {

namespace {

// Prompts are read in pieces that end at multiples of this: what prompts share is then known in the
// same pieces.
constexpr std::size_t piece = 256;

// Tokens of prompts that go through the model in one step: few where others wait for their next
// token meanwhile, so that a long prompt does not stop them.
std::size_t most_read(const mamba::LanguageModel& model, bool others_write) {
  const std::size_t on_host = others_write ? 512 : 4096;
  return model.device().is_cuda() ? 8 * on_host : on_host;
}

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::bad_alloc&) {
    return "not enough memory";
  } catch (const std::exception& what) {
    return what.what();
  }
}

// Before it goes through the model with others, to whom it would be an error too.
void check_ids(const Ids& prompt, std::int64_t vocab) {
  for (const std::int32_t id : prompt) {
    if (id >= 0 && id < vocab) continue;
    throw mamba::ArgumentError("Engine", "prompt", "ids from 0 to " + std::to_string(vocab - 1),
                               std::to_string(id));
  }
}

}  // namespace

mamba::GenerateOptions options_of(const Job& job, const mamba::Tokenizer& tokenizer) {
  mamba::GenerateOptions options;
  options.max_tokens = job.max_tokens;
  options.ignore_eos = job.ignore_eos;
  options.stop = job.stop;
  options.tokenizer = &tokenizer;
  options.log_probs = job.log_probs;
  options.check();
  return options;
}

Engine::Engine(const mamba::LanguageModel& model, const mamba::Tokenizer& tokenizer,
               mamba::StateCache* cache, mamba::Stream& stream, const EngineOptions& options)
    : model_(model),
      tokenizer_(tokenizer),
      cache_(cache),
      stream_(stream),
      options_(options),
      pool_(model, options.capacity, stream) {}

Ids Engine::Order::text(std::size_t read) const {
  Ids ids;
  if (job.from && !job.look_for) ids = job.from->path;
  ids.insert(ids.end(), job.prompt.begin(), job.prompt.begin() + static_cast<std::ptrdiff_t>(read));
  return ids;
}

// ---- from other threads -------------------------------------------------------------------------

std::vector<Engine::Ticket> Engine::submit(
    std::vector<Job> jobs, const std::vector<std::shared_ptr<Listener>>& listeners) {
  std::vector<std::shared_ptr<Order>> orders;
  std::int64_t choices = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    auto order = std::make_shared<Order>();
    order->job = std::move(jobs[i]);
    order->listener = listeners[i];
    choices += order->job.choices;
    orders.push_back(std::move(order));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (places_taken_ + choices > options_.capacity + options_.queue) {
    throw QueueFull(options_.queue);
  }
  places_taken_ += choices;
  std::vector<Ticket> tickets;
  for (std::shared_ptr<Order>& order : orders) {
    order->ticket = ++tickets_;
    tickets.push_back(order->ticket);
    inbox_.push_back({std::move(order), 0, nullptr, 0});
  }
  wake_.notify_one();
  return tickets;
}

Engine::Ticket Engine::submit(Job job, const std::shared_ptr<Listener>& listener) {
  std::vector<Job> jobs;
  jobs.push_back(std::move(job));
  return submit(std::move(jobs), {listener}).front();
}

void Engine::cancel(Ticket ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cancelled_.push_back(ticket);
  wake_.notify_one();
}

void Engine::stop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  stopping_ = true;
  wake_.notify_one();
}

Counts Engine::counts() const {
  Counts counts;
  counts.read = read_;
  counts.known = known_;
  counts.written = written_;
  counts.running = running_;
  counts.steps = steps_;
  const std::lock_guard<std::mutex> lock(mutex_);
  counts.waiting = std::max<std::int64_t>(places_taken_ - counts.running, 0);
  return counts;
}

std::int64_t Engine::room() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return options_.capacity - places_taken_;
}

// ---- a step -------------------------------------------------------------------------------------

void Engine::run() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] {
        return stopping_ || !inbox_.empty() || !cancelled_.empty() || places_taken_ > 0;
      });
      if (stopping_ && inbox_.empty() && places_taken_ == 0) return;
    }
    step();
  }
}

bool Engine::step() {
  take_inbox();
  admit();
  if (answers_.empty()) return false;
  ++steps_;
  read_prompts();
  write_tokens();
  return true;
}

void Engine::take_inbox() {
  std::vector<Ticket> cancelled;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.insert(waiting_.end(), std::make_move_iterator(inbox_.begin()),
                    std::make_move_iterator(inbox_.end()));
    inbox_.clear();
    cancelled.swap(cancelled_);
  }
  if (cancelled.empty()) return;
  const auto gone = [&](const std::shared_ptr<const Order>& order) {
    return std::find(cancelled.begin(), cancelled.end(), order->ticket) != cancelled.end();
  };
  for (auto answer = answers_.begin(); answer != answers_.end();) {
    const auto here = answer++;
    if (gone(here->order)) finish(here, Finish::cancelled);
  }
  std::deque<Waiting> left;
  for (Waiting& waiting : waiting_) {
    if (gone(waiting.order)) {
      finish(waiting);
    } else {
      left.push_back(std::move(waiting));
    }
  }
  waiting_.swap(left);
}

void Engine::interrupt() {
  take_inbox();
  while (!answers_.empty()) finish(answers_.begin(), Finish::cancelled);
  while (!waiting_.empty()) {
    const Waiting waiting = std::move(waiting_.front());
    waiting_.pop_front();
    finish(waiting);
  }
}

void Engine::admit() {
  while (!waiting_.empty() && pool_.size() < pool_.capacity()) {
    Waiting waiting = std::move(waiting_.front());
    waiting_.pop_front();
    const std::shared_ptr<const Order> order = waiting.order;
    const int choice = waiting.choice;
    std::exception_ptr error;
    try {
      begin(std::move(waiting));
    } catch (const std::exception&) {
      error = std::current_exception();
    }
    if (!error) {
      if (!answers_.back().reads()) announce(std::prev(answers_.end()));
      continue;
    }
    const int choices = choice == 0 ? order->job.choices : 1;
    release(choices);
    for (int i = 0; i < choices; ++i) order->listener->failed(choice + i, text_of(error));
  }
}

void Engine::begin(Waiting waiting) {
  const Job& job = waiting.order->job;
  check_ids(job.prompt, model_.config().vocab_size);
  mamba::SamplingOptions sampling = job.sampling;
  sampling.seed += static_cast<std::uint64_t>(waiting.choice);
  mamba::Generator generator = pool_.make(sampling);
  std::size_t known = 0;
  bool all_read = false;
  if (waiting.after_prompt) {
    generator.copy_from(waiting.after_prompt->snapshot);
    generator.set_options(sampling);
    known = static_cast<std::size_t>(waiting.known);
    all_read = true;
  } else if (job.from && !job.look_for) {
    generator.copy_from(job.from->snapshot);
    generator.set_options(sampling);
  } else {
    go_on_from(generator, job, known);
  }
  Answer answer{
      waiting.order, waiting.choice, std::move(generator), {}, StopTrim(), known, known, 0, {},
      std::nullopt,  false};
  answer.options = options_of(job, tokenizer_);
  if (!job.stop_in_text) answer.trim = StopTrim(job.stop);
  if (all_read) answer.read = job.prompt.size();
  if (job.score_prompt && !all_read) {
    answer.scores.emplace(model_, job.prompt, job.log_probs.value_or(0));
  }
  answers_.push_back(std::move(answer));
  known_ += all_read ? 0 : static_cast<std::int64_t>(known);
  ++running_;
}

// The longest beginning of the prompt that is known: to the cache, or as what the job goes on from.
void Engine::go_on_from(mamba::Generator& generator, const Job& job, std::size_t& known) {
  if (cache_ != nullptr) known = static_cast<std::size_t>(cache_->find(generator, job.prompt));
  if (!job.from || job.from->path.size() <= known) return;
  const mamba::SamplingOptions sampling = generator.options();
  generator.copy_from(job.from->snapshot);
  generator.set_options(sampling);
  known = job.from->path.size();
}

// A piece of prompts at a time, everybody in turn.
void Engine::read_prompts() {
  const bool others_write = std::any_of(answers_.begin(), answers_.end(),
                                        [](const Answer& answer) { return !answer.reads(); });
  std::size_t left = most_read(model_, others_write);
  mamba::Generator::Group group;
  std::vector<Ids> pieces;
  std::vector<Answers::iterator> readers;
  for (auto answer = answers_.begin(); answer != answers_.end() && left > 0; ++answer) {
    if (!answer->reads()) continue;
    readers.push_back(answer);
    const Ids& prompt = answer->order->job.prompt;
    if (answer->read == prompt.size()) continue;  // its scores alone are missing
    const auto position = static_cast<std::size_t>(answer->position());
    const std::size_t count =
        std::min({piece - position % piece, prompt.size() - answer->read, left});
    const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(answer->read);
    pieces.emplace_back(first, first + static_cast<std::ptrdiff_t>(count));
    group.push_back(&answer->generator);
    answer->read += count;
    left -= count;
  }
  if (readers.empty()) return;
  std::exception_ptr error;
  try {
    mamba::Generator::read(group, pieces);
  } catch (const std::exception&) {
    error = std::current_exception();
  }
  for (const Ids& ids : pieces) read_ += static_cast<std::int64_t>(ids.size());
  for (const Answers::iterator reader : readers) {
    answers_.splice(answers_.end(), answers_, reader);  // the others come first the next time
    std::exception_ptr own = error;
    try {
      if (!own && reader->scores) reader->scores->read_piece(stream_);
      if (!own && cache_ != nullptr) {
        cache_->keep(reader->generator, reader->order->text(reader->read));
      }
    } catch (const std::exception&) {
      own = std::current_exception();
    }
    if (own) {
      fail(reader, own);
    } else if (!reader->reads()) {
      announce(reader);
    }
  }
}

// The prompt is read. Choices but the first go on from here, before whoever came later.
void Engine::announce(Answers::iterator answer) {
  const std::shared_ptr<const Order> order = answer->order;
  std::shared_ptr<const KeptText> after;
  try {
    if (answer->choice == 0 && order->job.choices > 1) {
      after = std::make_shared<KeptText>(KeptText{{}, answer->generator.snapshot()});
    }
  } catch (const std::exception&) {
    fail(answer, std::current_exception());
    return;
  }
  answer->announced = true;
  if (answer->choice > 0) return;
  PromptRead told;
  told.known = static_cast<std::int64_t>(answer->known);
  if (answer->scores) told.scores = answer->scores->scores();
  for (int choice = order->job.choices; --choice > 0;) {
    waiting_.push_front({order, choice, after, told.known});
  }
  order->listener->read(told);
}

// One token more of every text whose prompt is read.
void Engine::write_tokens() {
  mamba::Generator::Group group;
  std::vector<Answers::iterator> writers;
  for (auto answer = answers_.begin(); answer != answers_.end();) {
    const auto here = answer++;
    if (here->reads()) continue;
    if (here->order->job.max_tokens == 0) {
      finish(here, Finish::max_tokens);
      continue;
    }
    group.push_back(&here->generator);
    writers.push_back(here);
  }
  if (group.empty()) return;
  std::vector<mamba::Chosen> chosen;
  try {
    chosen = mamba::Generator::next(group);
  } catch (const std::exception&) {
    chosen.assign(group.size(), {-1, std::current_exception()});
  }
  for (std::size_t i = 0; i < writers.size(); ++i) {
    if (chosen[i].error) {
      fail(writers[i], chosen[i].error);
    } else {
      ++written_;
      if (writers[i]->order->job.keep) writers[i]->ids.push_back(chosen[i].token);
      Token token;
      token.id = chosen[i].token;
      write_token(writers[i], std::move(token));
    }
  }
}

void Engine::write_token(Answers::iterator answer, Token token) {
  std::optional<mamba::StopReason> reason;
  const mamba::GenerateOptions& options = answer->options;
  try {
    if (options.log_probs) token.log_probs = answer->generator.log_probs(*options.log_probs);
    token.text = answer->trim.push(answer->generator.text(options));
    reason = answer->generator.stopped(options);
    token.position = answer->generator.tokens_seen() - 1;
    ++answer->written;
    if (!reason && answer->written < options.max_tokens) keep_point(*answer);
  } catch (const std::exception&) {
    fail(answer, std::current_exception());
    return;
  }
  answer->order->listener->token(answer->choice, std::move(token));
  if (reason) {
    finish(answer, *reason == mamba::StopReason::eos ? Finish::eos : Finish::stop);
  } else if (answer->written >= options.max_tokens) {
    finish(answer, Finish::max_tokens);
  }
}

// A text that is kept can be gone back to: see StateCache.
void Engine::keep_point(Answer& answer) {
  if (cache_ == nullptr || !answer.order->job.keep) return;
  if (answer.generator.tokens_seen() % options_.keep_every != 0) return;
  cache_->keep(answer.generator, path_of(answer));
}

Ids Engine::path_of(const Answer& answer) {
  Ids path = answer.order->text(answer.read);
  path.insert(path.end(), answer.ids.begin(), answer.ids.end());
  return path;
}

// ---- the end of one -----------------------------------------------------------------------------

std::shared_ptr<const KeptText> Engine::kept(Answer& answer) const {
  return std::make_shared<KeptText>(
      KeptText{path_of(answer), answer.generator.snapshot(mamba::Device::cpu())});
}

void Engine::finish(Answers::iterator answer, Finish reason) {
  const Order& order = *answer->order;
  Finished end;
  end.reason = reason;
  end.read = static_cast<std::int64_t>(answer->read);
  end.known = static_cast<std::int64_t>(answer->known);
  end.written = answer->written;
  end.text = answer->trim.finish(reason == Finish::stop);
  try {
    // Half a character is the beginning of what a text that is kept goes on with.
    if (order.job.keep && reason != Finish::cancelled) {
      end.kept = kept(*answer);
    } else {
      end.text += answer->generator.finish_text();
    }
  } catch (const std::exception&) {
    fail(answer, std::current_exception());
    return;
  }
  const std::shared_ptr<Listener> listener = order.listener;
  const int choice = answer->choice;
  const bool alone = choice == 0 && !answer->announced;  // the other choices have not begun
  const int choices = order.job.choices;
  leave(answer, alone ? choices : 1);
  listener->finished(choice, end);
  for (int i = 1; alone && i < choices; ++i) listener->finished(i, end);
}

void Engine::finish(const Waiting& waiting) {
  const bool alone = waiting.choice == 0;
  const int choices = alone ? waiting.order->job.choices : 1;
  release(choices);
  for (int i = 0; i < choices; ++i) {
    Finished end;
    end.reason = Finish::cancelled;
    waiting.order->listener->finished(waiting.choice + i, end);
  }
}

void Engine::fail(Answers::iterator answer, const std::exception_ptr& error) {
  const std::shared_ptr<const Order> order = answer->order;
  const int choice = answer->choice;
  const bool alone = choice == 0 && !answer->announced;
  const int choices = alone ? order->job.choices : 1;
  leave(answer, choices);
  for (int i = 0; i < choices; ++i) order->listener->failed(choice + i, text_of(error));
}

void Engine::leave(Answers::iterator answer, int places) {
  answers_.erase(answer);
  --running_;
  release(places);
}

void Engine::release(int places) {
  const std::lock_guard<std::mutex> lock(mutex_);
  places_taken_ -= places;
}

}  // namespace server
