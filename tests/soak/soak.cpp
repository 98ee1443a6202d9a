// Generators, pools, caches and plain calls handed from thread to thread for as long as asked:
// every text must be the one that its generator writes alone. Threads end and others begin all the
// while, things are made on one and used on others, and all share the models and the caches.
//
//   mamba_soak SECONDS [THREADS] [SEED] [--device cpu|cuda[:N]] [--model FOLDER]
//
// Ends with 1 at the first difference, or when nothing has happened for five minutes. Where texts
// go through the model together, sums are rounded differently, and a draw that falls between two
// rounded values may go either way: such draws are counted apart, and the text is followed from
// there.
#include <mamba/mamba.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace mamba;
namespace fs = std::filesystem;
using Ids = Generator::Ids;

constexpr std::size_t text_length = 40;  // tokens that a text has at most

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t upto(std::int64_t most) {  // 0 .. most
    return std::uniform_int_distribution<std::int64_t>(0, most)(engine_);
  }
  std::size_t index(std::size_t count) {
    return static_cast<std::size_t>(upto(static_cast<std::int64_t>(count) - 1));
  }
  bool one_in(std::int64_t n) { return upto(n - 1) == 0; }

 private:
  std::mt19937_64 engine_;
};

// ---- what was seen ------------------------------------------------------------------------------

struct Counts {
  std::atomic<long> actions{0}, texts{0}, tokens{0}, rounded{0}, threads{0}, forks{0}, saves{0},
      thrown{0}, cached{0}, calls{0};
};
Counts counts;

struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Planned {};  // thrown by callbacks

// ---- texts and what they must be ----------------------------------------------------------------

struct Model {
  std::string name;
  LanguageModel model;
  std::unique_ptr<StateCache> in_memory;
  std::unique_ptr<StateCache> in_files;
};

struct Task {
  const Model* model;
  Ids prompt;
  SamplingOptions options;
  Ids expected;               // written alone
  std::vector<float> logits;  // after the prompt, read alone
};

// A text being written, or written. From places[i].first on the random numbers are others.
struct Text {
  const Task* task = nullptr;
  Ids written;
  std::vector<std::pair<std::size_t, std::uint64_t>> seeds;
  bool done() const { return written.size() >= text_length; }
  std::size_t left() const { return text_length - written.size(); }
};

Tensor row_of(const Ids& ids) {
  return Tensor::from(ids, {1, static_cast<std::int64_t>(ids.size())});
}

float largest(const std::vector<float>& values) {
  float size = 0;
  for (const float value : values) size = std::max(size, std::abs(value));
  return size;
}

// How far logits may lie apart whose sums were rounded in another order.
float rounding(const LanguageModel& model, const std::vector<float>& logits) {
  return (model.dtype() == DType::f32 ? 2e-5f : 6e-2f) * largest(logits);
}

std::int32_t choose(const std::vector<float>& logits, const SamplingOptions& options,
                    std::uint64_t seed, std::size_t drawn, const std::vector<std::int32_t>& seen,
                    Stream& stream) {
  const auto vocabulary = static_cast<std::int64_t>(logits.size());
  const Tensor row = Tensor::from(logits, {1, vocabulary});
  Tensor counted = Tensor::from(seen, {1, vocabulary});
  Tensor draws = Tensor::from(Ids{static_cast<std::int32_t>(drawn)}, {1});
  const Tensor key = Tensor::from(
      Ids{static_cast<std::int32_t>(seed & 0xffffffffu), static_cast<std::int32_t>(seed >> 32)},
      {1, 2});
  Tensor chosen({1}, DType::i32);
  Sample sample;
  sample.logits = row;
  sample.seed = key;
  sample.draws = draws;
  sample.seen = counted;
  sample.ids = chosen;
  sample.temperature = options.temperature;
  sample.top_k = options.top_k;
  sample.top_p = options.top_p;
  sample.min_p = options.min_p;
  sample.repetition_penalty = options.repetition_penalty;
  run(sample, stream);
  return chosen.data<std::int32_t>()[0];
}

// Whether logits no further from these than rounding goes may give `token`. The whole way would
// move the draw past a token less likely than the way is long, so parts of it are tried.
bool may_choose(std::int32_t token, const std::vector<float>& logits, float reach,
                const SamplingOptions& options, std::uint64_t seed, std::size_t drawn,
                const std::vector<std::int32_t>& seen, Stream& stream) {
  const auto with = [&](float way, auto change) {
    std::vector<float> moved = logits;
    for (std::size_t i = 0; i < moved.size(); ++i) {
      moved[i] += way * static_cast<float>(change(static_cast<std::int32_t>(i)));
    }
    return choose(moved, options, seed, drawn, seen, stream) == token;
  };
  constexpr int parts = 32;
  for (int part = 1; part <= parts; ++part) {
    const float way = reach * static_cast<float>(part) / parts;
    // The token itself, and the ids below and above it, between which a draw falls.
    if (with(way, [&](std::int32_t id) { return id == token ? 1 : -1; })) return true;
    if (with(way, [&](std::int32_t id) { return id < token ? 1 : -1; })) return true;
    if (with(way, [&](std::int32_t id) { return id <= token ? 1 : -1; })) return true;
    if (with(way, [&](std::int32_t id) { return id > token ? 1 : -1; })) return true;
    if (with(way, [&](std::int32_t id) { return id >= token ? 1 : -1; })) return true;
  }
  Random random(drawn);
  for (int trial = 0; trial < 32; ++trial) {
    const float way = reach * static_cast<float>(1 + trial % 8) / 8;
    if (with(way, [&](std::int32_t) { return random.upto(2) - 1; })) return true;
  }
  return false;
}

// The text token by token, alone and on a stream of its own: each token is the one that comes next
// there, or one between which and it only rounding decides.
void follow(const Text& text, const std::string& how) {
  const Task& task = *text.task;
  const LanguageModel& model = task.model->model;
  Stream stream(model.device(), 1);
  Stream host(Device::cpu(), 1);
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32, model.device());
  std::vector<std::int32_t> seen(static_cast<std::size_t>(model.config().vocab_size));
  const auto feed = [&](const Ids& ids) {
    const Tensor there = row_of(ids).to(model.device());
    model.forward(there, state, Logits::last(logits), stream);
    stream.synchronize();
    for (const std::int32_t id : ids) ++seen[static_cast<std::size_t>(id)];
  };
  feed(task.prompt);
  std::uint64_t seed = task.options.seed;
  for (std::size_t i = 0; i < text.written.size(); ++i) {
    for (const auto& [place, value] : text.seeds) {
      if (place == i) seed = value;
    }
    const std::vector<float> row = logits.to_vector<float>();
    const std::int32_t got = text.written[i];
    const std::int32_t expected = choose(row, task.options, seed, i, seen, host);
    if (got != expected) {
      if (!may_choose(got, row, rounding(model, row), task.options, seed, i, seen, host)) {
        throw Difference(how + ", model " + task.model->name + ": token " + std::to_string(i) +
                         " of " + std::to_string(text.written.size()) + " is " +
                         std::to_string(got) + ", alone " + std::to_string(expected) + " (logits " +
                         std::to_string(row[static_cast<std::size_t>(got)]) + " and " +
                         std::to_string(row[static_cast<std::size_t>(expected)]) +
                         "), temperature " + std::to_string(task.options.temperature) + ", top_k " +
                         std::to_string(task.options.top_k) + ", top_p " +
                         std::to_string(task.options.top_p) + ", min_p " +
                         std::to_string(task.options.min_p) + ", repetition_penalty " +
                         std::to_string(task.options.repetition_penalty));
      }
      ++counts.rounded;
    }
    feed({got});
  }
}

void check(const Text& text, const std::string& how) {
  const Ids& expected = text.task->expected;
  ++counts.texts;
  counts.tokens += static_cast<long>(text.written.size());
  if (text.seeds.empty() && text.written.size() <= expected.size() &&
      std::equal(text.written.begin(), text.written.end(), expected.begin())) {
    return;
  }
  follow(text, how);
}

// ---- the world that all threads share -----------------------------------------------------------

class Work {
 public:
  virtual ~Work() = default;
  // One thing, on whichever thread holds it; false: it has ended.
  virtual bool act(Random& random) = 0;
};

struct World {
  Device device;
  std::vector<std::unique_ptr<Model>> models;
  std::vector<Task> tasks;
  fs::path folder;
  std::atomic<long> files{0};

  std::mutex mutex;
  std::vector<std::unique_ptr<Work>> shelf;  // what nobody works on
  std::string difference;
  std::atomic<bool> stop{false};

  const Task& task(Random& random) const { return tasks[random.index(tasks.size())]; }
  const Task& task_of(const Model& model, Random& random) const {
    for (;;) {
      const Task& one = task(random);
      if (one.model == &model) return one;
    }
  }
  std::string file() { return (folder / std::to_string(files++)).string(); }
  // Now and then there is none: what is made owns its own.
  std::unique_ptr<Stream> stream(Random& random) const {
    if (random.one_in(2)) return nullptr;
    return std::make_unique<Stream>(device, static_cast<int>(1 + random.upto(3)));
  }
};

GenerateOptions plain(std::int64_t most) {
  GenerateOptions options;
  options.max_tokens = most;
  options.ignore_eos = true;
  return options;
}

// One generator: what was made here may have begun as the fork of another.
class Alone : public Work {
 public:
  Alone(World& world, const Task& task, Random& random)
      : world_(world), stream_(world.stream(random)), generator_(make(task)) {
    text_.task = &task;
  }
  Alone(World& world, Generator generator, Text text, std::size_t read)
      : world_(world), generator_(std::move(generator)), text_(std::move(text)), read_(read) {}

  bool act(Random& random) override {
    const Ids& prompt = text_.task->prompt;
    if (read_ < prompt.size()) {
      read(random);
      return true;
    }
    if (text_.done()) {
      check(text_, "a generator");
      return false;
    }
    switch (random.upto(9)) {
      case 0:
        fork(random);
        break;
      case 1:
        through_a_file(random);
        break;
      case 2:
        throwing(random);
        break;
      case 3: {
        generator_.read({});
        const StackState state = generator_.state();
        if (state.batch() != 1 || copy_of(generator_.logits()).to_vector<float>().empty()) {
          throw Difference("no state");
        }
        break;
      }
      case 4: {
        const auto seed = static_cast<std::uint64_t>(random.upto(1 << 30));
        text_.seeds.emplace_back(text_.written.size(), seed);
        generator_.reseed(seed);
        break;
      }
      case 5:
        if (random.one_in(4)) {  // begins again
          check(text_, "a generator");
          Text fresh;
          fresh.task = text_.task;
          generator_ = make(*text_.task);
          text_ = std::move(fresh);
          read_ = 0;
          break;
        }
        [[fallthrough]];
      case 6:
      case 7: {
        const auto most =
            std::min<std::int64_t>(static_cast<std::int64_t>(text_.left()), 1 + random.upto(9));
        const Ids more = generator_.generate(plain(most)).tokens;
        text_.written.insert(text_.written.end(), more.begin(), more.end());
        break;
      }
      default:
        text_.written.push_back(generator_.next());
    }
    return true;
  }

 private:
  Generator make(const Task& task) const {
    const LanguageModel& model = task.model->model;
    return stream_ ? Generator(model, task.options, *stream_) : Generator(model, task.options);
  }

  static Tensor copy_of(ConstTensorView view) {
    Tensor copied(view.shape(), view.dtype(), view.device());
    Stream& stream = default_stream(view.device());
    copy(view, copied, stream);
    stream.synchronize();
    return copied;
  }

  void read(Random& random) {
    const Ids& prompt = text_.task->prompt;
    if (read_ == 0 && random.one_in(2)) {
      const Model& model = *text_.task->model;
      (random.one_in(2) ? model.in_memory : model.in_files)->read(generator_, prompt);
      ++counts.cached;
      read_ = prompt.size();
      return;
    }
    const std::size_t count = 1 + random.index(prompt.size() - read_);
    const auto from = prompt.begin() + static_cast<std::ptrdiff_t>(read_);
    generator_.read(Ids(from, from + static_cast<std::ptrdiff_t>(count)));
    read_ += count;
  }

  // Forks of a generator that owns its stream may go to other threads; those of one on a stream
  // that it was given are on that stream, and stay here.
  void fork(Random& random) {
    counts.forks += 1;
    std::vector<Generator> forks;
    if (random.one_in(2)) {
      forks.push_back(generator_.fork());
    } else {
      forks = generator_.fork(1 + random.upto(2));
    }
    if (stream_ || forks.size() > 1) {
      for (std::size_t i = 0; i < forks.size(); ++i) {
        Text text = text_;
        if (i > 0) text.seeds.emplace_back(text.written.size(), forks[i].options().seed);
        const Ids more = forks[i].generate(plain(static_cast<std::int64_t>(text.left()))).tokens;
        text.written.insert(text.written.end(), more.begin(), more.end());
        check(text, "a fork");
      }
      return;
    }
    auto other = std::make_unique<Alone>(world_, std::move(forks.front()), text_, read_);
    const std::lock_guard<std::mutex> lock(world_.mutex);
    world_.shelf.push_back(std::move(other));
  }

  // Or through the bytes of one.
  void through_a_file(Random& random) {
    ++counts.saves;
    const LanguageModel& model = text_.task->model->model;
    std::unique_ptr<Stream> stream = world_.stream(random);
    if (random.one_in(2)) {
      const GeneratorSnapshot snapshot = GeneratorSnapshot::load(generator_.snapshot().save());
      generator_ = stream ? Generator(model, snapshot, *stream) : Generator(model, snapshot);
    } else {
      const std::string path = world_.file();
      generator_.save(path);
      generator_ =
          stream ? Generator::restore(path, model, *stream) : Generator::restore(path, model);
      fs::remove(path);
    }
    stream_ = std::move(stream);
  }

  void throwing(Random& random) {
    ++counts.thrown;
    const auto most = static_cast<std::int64_t>(text_.left());
    GenerateOptions options = plain(most);
    std::int64_t left = random.upto(most);
    options.on_token = [&](std::int32_t token) {
      text_.written.push_back(token);
      if (left-- == 0) throw Planned();
      return true;
    };
    try {
      generator_.generate(options);
    } catch (const Planned&) {
    }
  }

  World& world_;
  std::unique_ptr<Stream> stream_;  // none: the generator owns one
  Generator generator_;
  Text text_;
  std::size_t read_ = 0;  // of the prompt
};

// Members that join and leave, and go on in groups.
class Together : public Work {
 public:
  Together(World& world, Random& random)
      : world_(world),
        model_(*world.models[random.index(world.models.size())]),
        stream_(world.stream(random)),
        left_(5 + random.upto(60)) {
    const std::int64_t capacity = 1 + random.upto(5);
    pool_ = stream_ ? std::make_unique<GeneratorPool>(model_.model, capacity, *stream_)
                    : std::make_unique<GeneratorPool>(model_.model, capacity);
  }

  bool act(Random& random) override {
    if (pool_ && left_-- <= 0) pool_.reset();  // the members outlive it
    if (!pool_ && members_.empty()) return false;
    if (pool_ && pool_->size() < pool_->capacity() && random.one_in(2)) {
      join(random);
      return true;
    }
    std::vector<Member*> reading, writing;
    for (const auto& member : members_) {
      if (random.one_in(4)) continue;  // this one sits it out
      (member->read < member->text.task->prompt.size() ? reading : writing).push_back(member.get());
    }
    if (!reading.empty() && random.one_in(2)) {
      read(reading, random);
    } else if (!writing.empty()) {
      write(writing, random);
    }
    for (std::size_t i = members_.size(); i-- > 0;) {
      Member& member = *members_[i];
      const bool leaves = random.one_in(60);  // in the middle of its text
      if (!member.text.done() && !leaves) continue;
      check(member.text, "a member of a pool");
      members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return true;
  }

 private:
  struct Member {
    Generator generator;
    Text text;
    std::size_t read;
  };

  void join(Random& random) {
    const Task& task = world_.task_of(model_, random);
    if (random.one_in(6)) {  // comes from a file that a generator of its own has written
      const std::string path = world_.file();
      Text text;
      text.task = &task;
      {
        Generator other(model_.model, task.options);
        other.read(task.prompt);
        text.written = other.generate(plain(random.upto(9))).tokens;
        other.save(path);
      }
      ++counts.saves;
      members_.push_back(std::make_unique<Member>(
          Member{pool_->restore(path), std::move(text), task.prompt.size()}));
      fs::remove(path);
      return;
    }
    Text text;
    text.task = &task;
    members_.push_back(
        std::make_unique<Member>(Member{pool_->make(task.options), std::move(text), 0}));
    Member& member = *members_.back();
    if (random.one_in(3)) {
      (random.one_in(2) ? model_.in_memory : model_.in_files)->read(member.generator, task.prompt);
      ++counts.cached;
      member.read = task.prompt.size();
    }
  }

  void read(const std::vector<Member*>& members, Random& random) {
    Generator::Group group;
    std::vector<Ids> pieces;
    for (Member* member : members) {
      const Ids& prompt = member->text.task->prompt;
      const auto from = prompt.begin() + static_cast<std::ptrdiff_t>(member->read);
      const auto count = random.upto(prompt.end() - from);
      group.push_back(&member->generator);
      pieces.emplace_back(from, from + count);
      member->read += static_cast<std::size_t>(count);
    }
    Generator::read(group, pieces);
  }

  void write(const std::vector<Member*>& members, Random& random) {
    Generator::Group group;
    for (Member* member : members) group.push_back(&member->generator);
    if (random.one_in(2)) {
      const auto chosen = Generator::next(group);
      for (std::size_t i = 0; i < members.size(); ++i) {
        if (chosen[i].error) std::rethrow_exception(chosen[i].error);
        members[i]->text.written.push_back(chosen[i].token);
      }
      return;
    }
    std::vector<GenerateOptions> options;
    for (const Member* member : members) {
      options.push_back(plain(
          std::min<std::int64_t>(static_cast<std::int64_t>(member->text.left()), random.upto(12))));
    }
    const std::vector<Generated> results = Generator::generate(group, options);
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (results[i].error) std::rethrow_exception(results[i].error);
      Ids& written = members[i]->text.written;
      written.insert(written.end(), results[i].tokens.begin(), results[i].tokens.end());
    }
  }

  World& world_;
  const Model& model_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<GeneratorPool> pool_;
  std::vector<std::unique_ptr<Member>> members_;
  std::int64_t left_;  // actions that the pool lives
};

// The model itself: rows of a larger state, resets inside of the text, calls of no time.
class Calls : public Work {
 public:
  Calls(World& world, Random& random)
      : world_(world),
        model_(*world.models[random.index(world.models.size())]),
        stream_(world.device, static_cast<int>(1 + random.upto(3))),
        batch_(1 + random.upto(3)),
        state_(model_.model.make_state(batch_ + 3)),
        left_(1 + random.upto(8)) {}

  bool act(Random& random) override {
    ++counts.calls;
    const LanguageModel& model = model_.model;
    const std::int64_t vocabulary = model.config().vocab_size;
    // Each row: junk, then a prompt from a reset on; all prompts as long as the shortest.
    std::vector<const Task*> tasks;
    for (std::int64_t b = 0; b < batch_; ++b) tasks.push_back(&world_.task_of(model_, random));
    std::size_t time = 0;
    for (const Task* task : tasks) time = std::max(time, task->prompt.size());
    time += random.index(4);
    Ids ids, resets;
    for (const Task* task : tasks) {
      const std::size_t before = time - task->prompt.size();
      for (std::size_t t = 0; t < time; ++t) {
        ids.push_back(t < before ? static_cast<std::int32_t>(random.upto(vocabulary - 1))
                                 : task->prompt[t - before]);
        resets.push_back(t == before ? 1 : 0);
      }
    }
    const Shape shape{batch_, static_cast<std::int64_t>(time)};
    const Tensor tokens = Tensor::from(ids, shape).to(world_.device);
    const Tensor reset = Tensor::from(resets, shape).to(world_.device);
    Ids rows(static_cast<std::size_t>(batch_) + 3);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int32_t>(i);
    for (std::size_t i = rows.size(); i-- > 1;) std::swap(rows[i], rows[random.index(i + 1)]);
    rows.resize(static_cast<std::size_t>(batch_));
    const Tensor map = Tensor::from(rows, {batch_}).to(world_.device);
    Tensor logits({batch_, vocabulary}, DType::f32, world_.device);
    const std::int64_t cut = random.upto(static_cast<std::int64_t>(time) - 1);
    const auto call = [&](std::int64_t first, std::int64_t count) {
      LanguageModelOptions options;
      const ConstTensorView part = reset.view().columns(first, count);
      options.reset = part;
      options.rows.read = map;
      options.rows.write = map;
      const bool last = first + count == static_cast<std::int64_t>(time) && count > 0;
      model.forward(tokens.view().columns(first, count), state_,
                    last ? Logits::last(logits) : Logits::none(), stream_, options);
    };
    call(0, cut);
    call(cut, 0);
    call(cut, static_cast<std::int64_t>(time) - cut);
    stream_.synchronize();
    const std::vector<float> got = logits.to_vector<float>();
    for (std::size_t b = 0; b < tasks.size(); ++b) {
      const std::vector<float>& expected = tasks[b]->logits;
      const float reach = rounding(model, expected);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const float value = got[b * expected.size() + i];
        if (!(std::abs(value - expected[i]) <= reach)) {
          throw Difference("a call, model " + model_.name + ": logit " + std::to_string(i) +
                           " of row " + std::to_string(b) + " is " + std::to_string(value) +
                           ", alone " + std::to_string(expected[i]));
        }
      }
    }
    return --left_ > 0;
  }

 private:
  World& world_;
  const Model& model_;
  Stream stream_;
  std::int64_t batch_;
  StackState state_;
  std::int64_t left_;
};

// ---- threads ------------------------------------------------------------------------------------

std::unique_ptr<Work> made(World& world, Random& random) {
  switch (random.upto(5)) {
    case 0:
      return std::make_unique<Calls>(world, random);
    case 1:
    case 2:
      return std::make_unique<Together>(world, random);
    default:
      return std::make_unique<Alone>(world, world.task(random), random);
  }
}

// A thread's life: some actions, each on whatever lies there.
void live(World& world, std::size_t most, std::uint64_t seed) {
  Random random(seed);
  ++counts.threads;
  try {
    for (std::int64_t left = 1 + random.upto(200); left > 0 && !world.stop; --left) {
      std::unique_ptr<Work> work;
      {
        const std::lock_guard<std::mutex> lock(world.mutex);
        if (world.shelf.size() >= most || (!world.shelf.empty() && !random.one_in(4))) {
          std::swap(world.shelf[random.index(world.shelf.size())], world.shelf.back());
          work = std::move(world.shelf.back());
          world.shelf.pop_back();
        }
      }
      if (!work) work = made(world, random);
      bool goes_on = true;
      for (std::int64_t times = 1 + random.upto(5); times > 0 && goes_on; --times) {
        goes_on = work->act(random);
        ++counts.actions;
      }
      if (!goes_on) continue;
      const std::lock_guard<std::mutex> lock(world.mutex);
      world.shelf.push_back(std::move(work));
    }
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> lock(world.mutex);
    if (world.difference.empty()) world.difference = error.what();
    world.stop = true;
  }
}

void add_tasks(World& world, const Model& model, Random& random) {
  const std::vector<SamplingOptions> kinds = [] {
    std::vector<SamplingOptions> list(4);
    list[1].temperature = 0.9f;
    list[1].top_k = 40;
    list[1].repetition_penalty = 1.1f;
    list[2].temperature = 1.2f;
    list[2].top_p = 0.9f;
    list[3].temperature = 0.7f;
    list[3].min_p = 0.02f;
    return list;
  }();
  Stream stream(world.device, 1);
  for (int i = 0; i < 8; ++i) {
    Task task{&model, {}, kinds[static_cast<std::size_t>(i) % kinds.size()], {}, {}};
    task.options.seed = static_cast<std::uint64_t>(random.upto(1 << 30)) << 20;
    for (std::int64_t length = 1 + random.upto(i % 2 == 0 ? 12 : 60); length > 0; --length) {
      task.prompt.push_back(
          static_cast<std::int32_t>(random.upto(model.model.config().vocab_size - 1)));
    }
    Generator generator(model.model, task.options, stream);
    generator.read(task.prompt);
    stream.synchronize();
    const ConstTensorView logits = generator.logits();
    Tensor copied(logits.shape(), DType::f32, world.device);
    copy(logits, copied, stream);
    stream.synchronize();
    task.logits = copied.to_vector<float>();
    task.expected = generator.generate(plain(text_length)).tokens;
    world.tasks.push_back(std::move(task));
  }
}

void add_model(World& world, const std::string& name, LanguageModel model) {
  world.models.push_back(std::make_unique<Model>(Model{name, std::move(model), nullptr, nullptr}));
  Model& added = *world.models.back();
  const std::int64_t one = added.model.make_state(1).bytes();
  CacheOptions options;
  options.keep_every = 8;
  options.device_bytes = 6 * one;
  options.host_bytes = 6 * one;  // things fall out all the time
  options.on_problem = [&world](const std::string& problem) {
    const std::lock_guard<std::mutex> lock(world.mutex);
    if (world.difference.empty()) world.difference = "a cache: " + problem;
    world.stop = true;
  };
  added.in_memory = std::make_unique<StateCache>(added.model, options);
  options.device_bytes = 0;
  options.host_bytes = one;
  options.disk_bytes = 10 * one;
  options.folder = (world.folder / name).string();
  added.in_files = std::make_unique<StateCache>(added.model, options);
}

struct Arguments {
  double seconds = 0;
  int threads = 4;
  std::uint64_t seed = 1;
  Device device = Device::cpu();
  std::string model = MAMBA_SHIPPED_MODEL;
};

Arguments parse(int count, char** words) {
  Arguments arguments;
  std::vector<std::string> numbers;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--device" && i + 1 < count) {
      const std::string name = words[++i];
      if (name.rfind("cuda", 0) == 0) {
        arguments.device = Device::cuda(name.size() > 5 ? std::stoi(name.substr(5)) : 0);
      }
    } else if (word == "--model" && i + 1 < count) {
      arguments.model = words[++i];
    } else {
      numbers.push_back(word);
    }
  }
  if (numbers.empty() || numbers.size() > 3) throw std::invalid_argument("no time");
  arguments.seconds = std::stod(numbers[0]);
  if (numbers.size() > 1) arguments.threads = std::stoi(numbers[1]);
  if (numbers.size() > 2) arguments.seed = std::stoull(numbers[2]);
  if (arguments.threads < 1) throw std::invalid_argument("no threads");
  return arguments;
}

int soak(const Arguments& arguments) {
  World world;
  world.device = arguments.device;
  world.folder = fs::temp_directory_path() / ("mamba_soak_" + std::to_string(getpid()));
  fs::create_directories(world.folder);
  add_model(world, "shipped", LanguageModel::load(arguments.model, DType::f32, world.device));
  LanguageModelConfig config;
  config.layer.d_model = 48;
  config.layer.gated_norm = true;
  config.n_layer = 2;
  config.vocab_size = 100;
  add_model(world, "small", LanguageModel::random(config, 3, DType::f32, world.device));
  config.layer.d_model = 64;
  config.layer.gated_norm = false;
  config.layer.norm_dt_b_c = true;
  config.vocab_size = 300;
  add_model(world, "half", LanguageModel::random(config, 4, DType::bf16, world.device));
  Random random(arguments.seed);
  for (const auto& model : world.models) add_tasks(world, *model, random);

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto end = start + std::chrono::duration<double>(arguments.seconds);
  const auto most = static_cast<std::size_t>(3 * arguments.threads);
  std::vector<std::thread> watched;
  std::atomic<int> alive{arguments.threads};
  for (int i = 0; i < arguments.threads; ++i) {
    watched.emplace_back([&, i] {
      // Threads follow each other, so that what lies on the shelf outlives who made it.
      for (std::uint64_t life = 0; !world.stop && Clock::now() < end; ++life) {
        const std::uint64_t seed =
            arguments.seed * 1000003 + static_cast<std::uint64_t>(i) + 1000 * life;
        std::thread(live, std::ref(world), most, seed).join();
      }
      --alive;
    });
  }
  long last = -1;
  auto moved = Clock::now();
  while (alive > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    if (Clock::now() >= end) world.stop = true;
    if (counts.actions != last) {
      last = counts.actions;
      moved = Clock::now();
    } else if (Clock::now() - moved > std::chrono::minutes(5)) {
      std::fprintf(stderr, "mamba_soak: nothing has happened for five minutes\n");
      std::_Exit(1);
    }
  }
  for (std::thread& thread : watched) thread.join();
  world.shelf.clear();
  world.models.clear();
  std::error_code ignored;
  fs::remove_all(world.folder, ignored);

  std::printf(
      "%.0f s, %ld threads: %ld actions, %ld texts (%ld tokens) compared, %ld draws within "
      "rounding; %ld forks, %ld files, %ld callbacks that threw, %ld reads through a cache, %ld "
      "calls\n",
      std::chrono::duration<double>(Clock::now() - start).count(), counts.threads.load(),
      counts.actions.load(), counts.texts.load(), counts.tokens.load(), counts.rounded.load(),
      counts.forks.load(), counts.saves.load(), counts.thrown.load(), counts.cached.load(),
      counts.calls.load());
  if (world.difference.empty()) return 0;
  std::printf("DIFFERENCE: %s\n", world.difference.c_str());
  return 1;
}

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  try {
    arguments = parse(count, words);
  } catch (const std::exception&) {
    std::fprintf(
        stderr,
        "usage: mamba_soak SECONDS [THREADS] [SEED] [--device cpu|cuda[:N]] [--model FOLDER]\n");
    return 2;
  }
  try {
    return soak(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mamba_soak: %s\n", error.what());
    return 1;
  }
}
