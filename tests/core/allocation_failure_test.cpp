// Each allocation of a call fails in turn. What comes out is an exception, and what is left works:
// the same call, once more, gives what it gives where nothing failed.
#include <memory>
#include <new>

#include <mamba/checkpoint.hpp>
#include <mamba/generator.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/state_file.hpp>
#include <mamba/tokenizer.hpp>

#include "core/allocations.hpp"
#include "each.hpp"
#include "files.hpp"
#include "model/training_run.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::FailingAllocation;
using testing::golden_folder;
using testing::names;
using testing::Random;
using testing::TemporaryFolder;

using Bytes = std::vector<unsigned char>;
using Ids = Generator::Ids;

void append(Bytes& to, const Bytes& more) { to.insert(to.end(), more.begin(), more.end()); }
void append(Bytes& to, const std::string& more) { to.insert(to.end(), more.begin(), more.end()); }
void append(Bytes& to, const StackState& state) {
  for (const MambaState& layer : state.layers) {
    append(to, bits(layer.conv));
    append(to, bits(layer.ssm));
  }
}

// Case: made anew for each allocation; call() is what runs out of memory, and result() is what it
// came to. `stride`: of the allocations that fail, where there are thousands. Returns how many
// there are.
template <class Case>
long fail_each(const std::function<std::unique_ptr<Case>()>& make, long stride) {
  const auto clean = make();
  clean->call();
  const Bytes wanted = clean->result();
  for (long n = 1;; n += stride) {
    SCOPED_TRACE("allocation " + std::to_string(n));
    const auto tried = make();
    bool failed = false, thrown = false;
    {
      const FailingAllocation failing(n);
      try {
        tried->call();
      } catch (const std::bad_alloc&) {
        thrown = true;
      } catch (const Error&) {
        thrown = true;
      }
      failed = failing.failed();
    }
    EXPECT_TRUE(failed || !thrown);
    if (thrown) {
      tried->after_failure();
      tried->call();
    }
    EXPECT_TRUE(tried->result() == wanted);
    if (!failed || ::testing::Test::HasFailure()) return n - 1;
  }
}

template <class Case, long stride = 1, class... Arguments>
long fail_each_of(const Arguments&... arguments) {
  return fail_each<Case>([&] { return std::make_unique<Case>(arguments...); }, stride);
}

struct Plain {
  void after_failure() {}
};

// ---- the model --------------------------------------------------------------------------------

struct LayerForward : Plain {
  const Layer& layer;
  Stream stream{Device::cpu(), 2};
  Tensor x, y;
  MambaState state;

  LayerForward(const Layer& of, std::int64_t time)
      : layer(of),
        x(Random(1).normal_tensor({2, time, 64}, of.dtype())),
        y(x.shape(), of.dtype()),
        state(of.make_state(2)) {}
  void call() { layer.forward(x, state, y, stream); }
  Bytes result() const {
    Bytes all = bits(y);
    append(all, bits(state.conv));
    append(all, bits(state.ssm));
    return all;
  }
};

TEST_EACH(AllocationFailure, LayerForward, DType dtype) {
  LayerConfig config;
  config.d_model = 64;
  const Layer layer = Layer::random(config, 1, dtype);
  for (const std::int64_t time : {1, 40}) {
    SCOPED_TRACE(std::string(name_of(dtype)) + " time " + std::to_string(time));
    EXPECT_GT(fail_each_of<LayerForward>(std::cref(layer), time), 0);
  }
}

struct ModelForward {
  const LanguageModel& model;
  Stream stream{Device::cpu(), 2};
  Tensor ids = Tensor::zeros({2, 40}, DType::i32);
  Tensor logits;
  StackState state;

  ModelForward(const LanguageModel& of, bool with_logits) : model(of), state(of.make_state(2)) {
    if (with_logits) logits = Tensor::zeros({2, model.config().vocab_size}, DType::f32);
  }
  void call() { model.forward(ids, state, logits ? Logits::last(logits) : Logits::none(), stream); }
  // A state that the layers have seen a part of the way is of no use; the stream and the model are.
  void after_failure() { state = model.make_state(2); }
  Bytes result() const {
    Bytes all = logits ? bits(logits) : Bytes();
    append(all, state);
    return all;
  }
};

LanguageModel small_model(DType dtype = DType::f32) {
  return LanguageModel::random(testing::TrainingRun::config(), 1, dtype);
}

TEST_EACH(AllocationFailure, LanguageModelForward, testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = small_model(dtype);
  for (const bool with_logits : {true, false}) {
    EXPECT_GT(fail_each_of<ModelForward>(std::cref(model), with_logits), 0) << name_of(dtype);
  }
}

struct TrainingStep {
  testing::TrainingRun run;
  Stream stream{Device::cpu(), 2};
  Tensor ids = Tensor::zeros({4, 16}, DType::i32);
  Tensor logits, dlogits;
  LanguageModelTape tape;
  TokenLoss loss;

  explicit TrainingStep(DType dtype)
      : run(dtype, Device::cpu()), logits({4, 16, 16}, DType::f32), dlogits({4, 16, 16}, dtype) {}

  void call() {
    LanguageModelOptions options;
    options.tape = &tape;
    run.model.forward(ids, run.state, Logits::all(logits), stream, options);
    loss.run(logits, ids, {64, dlogits}, stream);
    run.model.backward(tape, dlogits, nullptr, run.gradients, stream);
    run.optimizer.step(1e-3f, stream);
  }
  // The state and the gradients are written anew.
  void after_failure() { run.state = run.model.make_state(4); }
  Bytes result() const {
    Bytes all;
    run.optimizer.each_tensor(
        [&](const std::string&, ConstTensorView view) { append(all, bits(view)); });
    append(all, run.state);
    append(all, std::to_string(run.optimizer.steps()));
    return all;
  }
};

TEST_EACH(AllocationFailure, TrainingStep, testing::OneOf<DType::f32, DType::bf16> dtype) {
  EXPECT_GT(fail_each_of<TrainingStep>(dtype), 0) << name_of(dtype);
}

// ---- generation -------------------------------------------------------------------------------

// Whatever of a generation is lost with an exception, what comes next goes on from a state that
// belongs to the tokens chosen so far.
struct Generation : Plain {
  static constexpr std::int64_t target = 40;
  Tokenizer tokenizer = Tokenizer::bytes();
  Stream stream{Device::cpu(), 1};
  Generator generator;
  GenerateOptions options;
  std::string text;

  static SamplingOptions sampling() {
    SamplingOptions sampling;
    sampling.temperature = 1;
    sampling.top_k = 10;
    sampling.repetition_penalty = 1.1f;
    return sampling;
  }
  explicit Generation(const LanguageModel& model) : generator(model, sampling(), stream) {
    options.tokenizer = &tokenizer;
    options.stop = {"no such text"};
    options.ignore_eos = true;
    options.on_text = [this](std::string_view more) {
      text += more;
      return true;
    };
  }
  void call() {
    if (generator.tokens_seen() == 0) generator.read({1, 2, 3, 4, 5});
    options.max_tokens = target - generator.tokens_seen();
    if (options.max_tokens > 0) generator.generate(options);
    generator.logits();
  }
  // What is chosen but not read counts as well.
  void after_failure() { generator.state(); }
  Bytes result() {
    Bytes all;
    append(all, generator.state());
    append(all, bits(generator.logits()));
    append(all, std::to_string(generator.tokens_seen()));
    return all;
  }
};

TEST(AllocationFailure, Generate) {
  const LanguageModel model = small_model();
  EXPECT_GT(fail_each_of<Generation>(std::cref(model)), 0);
}

struct Forks : Plain {
  Stream stream{Device::cpu(), 1};
  Generator generator;
  std::vector<Generator> forks;

  explicit Forks(const LanguageModel& model) : generator(model, Generation::sampling(), stream) {
    generator.read({1, 2, 3});
    generator.next();
  }
  void call() { forks = generator.fork(3); }
  Bytes result() {
    Bytes all;
    for (Generator& fork : forks) {
      append(all, std::to_string(fork.next()));
      append(all, fork.state());
    }
    append(all, generator.state());
    return all;
  }
};

TEST(AllocationFailure, Fork) {
  const LanguageModel model = small_model();
  EXPECT_GT(fail_each_of<Forks>(std::cref(model)), 0);
}

// The rows of a pool that ran out of memory are free again.
struct PoolMember : Plain {
  Stream stream{Device::cpu(), 1};
  GeneratorPool pool;
  std::vector<Generator> members;

  explicit PoolMember(const LanguageModel& model) : pool(model, 2, stream) {}
  void call() {
    while (pool.size() < 2) members.push_back(pool.make(Generation::sampling()));
  }
  void after_failure() { EXPECT_EQ(pool.size(), static_cast<std::int64_t>(members.size())); }
  Bytes result() const { return {static_cast<unsigned char>(pool.size())}; }
};

TEST(AllocationFailure, PoolMember) {
  const LanguageModel model = small_model();
  EXPECT_GT(fail_each_of<PoolMember>(std::cref(model)), 0);
}

// Out of one generator, as bytes, and into a pool and another generator: who ran out of memory on
// the way is as before.
struct Snapshots : Plain {
  Stream stream{Device::cpu(), 1};
  Generator generator, other;
  GeneratorPool pool;
  std::vector<Generator> members;
  Bytes before;

  explicit Snapshots(const LanguageModel& model)
      : generator(model, Generation::sampling(), stream),
        other(model, {}, stream),
        pool(model, 1, stream) {
    generator.read({1, 2, 3});
    generator.next();
    other.read({4, 5});
    other.next();
    before = later();
  }
  Bytes later() {  // what the other writes
    Generator fork = other.fork();
    Bytes all;
    append(all, std::to_string(fork.next()));
    append(all, fork.state());
    return all;
  }
  void call() {
    const GeneratorSnapshot snapshot = generator.snapshot();
    members.push_back(pool.make(GeneratorSnapshot::load(snapshot.save())));
    other.copy_from(snapshot);
  }
  void after_failure() {
    EXPECT_EQ(later(), before);
    members.clear();
    EXPECT_EQ(pool.size(), 0);
  }
  Bytes result() {
    Bytes all = later();
    append(all, std::to_string(members.front().next()));
    append(all, members.front().state());
    append(all, std::to_string(generator.next()));
    return all;
  }
};

TEST(AllocationFailure, Snapshot) {
  const LanguageModel model = small_model();
  EXPECT_GT(fail_each_of<Snapshots>(std::cref(model)), 0);
}

// ---- files ------------------------------------------------------------------------------------

// The file is there as it was, or as it is to be, and nothing is left beside it.
struct Saving : Plain {
  const TemporaryFolder& folder;
  std::function<void(const std::string&)> save;

  Saving(const TemporaryFolder& in, std::function<void(const std::string&)> with)
      : folder(in), save(std::move(with)) {
    testing::write_file(path(), "before");
  }
  std::string path() const { return folder.file("file"); }
  void call() { save(path()); }
  void after_failure() {
    EXPECT_EQ(names(folder), std::vector<std::string>{"file"});
    EXPECT_EQ(testing::read_file(path()), "before");
  }
  Bytes result() const {
    EXPECT_EQ(names(folder), std::vector<std::string>{"file"});
    Bytes all;
    append(all, testing::read_file(path()));
    return all;
  }
};

void expect_saved_whole(const std::function<void(const std::string&)>& save) {
  const TemporaryFolder folder;
  EXPECT_GT((fail_each_of<Saving, 13>(std::cref(folder), save)), 0);
}

TEST(AllocationFailure, GeneratorSaveAndRestore) {
  const LanguageModel model = small_model();
  Stream stream(Device::cpu(), 1);
  Generator generator(model, Generation::sampling(), stream);
  generator.read({1, 2, 3});
  generator.next();
  expect_saved_whole([&](const std::string& path) { generator.save(path); });

  const TemporaryFolder folder;
  generator.save(folder.file("generation"));
  struct Restoring : Plain {
    const LanguageModel& model;
    std::string path;
    Stream stream{Device::cpu(), 1};
    GeneratorPool pool;
    std::vector<Generator> restored;
    Restoring(const LanguageModel& of, std::string from)
        : model(of), path(std::move(from)), pool(of, 1, stream) {}
    void call() { restored.push_back(pool.restore(path)); }
    void after_failure() { EXPECT_EQ(pool.size(), 0); }
    Bytes result() {
      Bytes all;
      append(all, std::to_string(restored.front().next()));
      append(all, restored.front().state());
      return all;
    }
  };
  EXPECT_GT((fail_each_of<Restoring, 3>(std::cref(model), folder.file("generation"))), 0);
}

TEST(AllocationFailure, StateFile) {
  const StackState state = small_model().make_state(2);
  StateMetadata metadata;
  metadata.tokens_seen = {3, 4};
  metadata.notes["a"] = "note";
  expect_saved_whole([&](const std::string& path) { save(path, state, metadata); });

  const TemporaryFolder folder;
  save(folder.file("state"), state, metadata);
  struct Loading : Plain {
    std::string path;
    SavedState loaded;
    explicit Loading(std::string from) : path(std::move(from)) {}
    void call() { loaded = load_state(path); }
    Bytes result() const {
      Bytes all;
      append(all, loaded.state);
      append(all, loaded.metadata.notes.at("a"));
      return all;
    }
  };
  EXPECT_GT(fail_each_of<Loading>(folder.file("state")), 0);
}

TEST(AllocationFailure, TrainingFile) {
  testing::TrainingRun run(DType::bf16, Device::cpu());
  run.step();
  run.progress.notes["a"] = "note";
  expect_saved_whole([&](const std::string& path) {
    save_training(path, run.optimizer, &run.state, run.progress);
  });

  const TemporaryFolder folder;
  save_training(folder.file("training"), run.optimizer, &run.state, run.progress);
  struct Loading {
    std::string path;
    testing::TrainingRun run{DType::bf16, Device::cpu()};
    Bytes before = result();
    explicit Loading(std::string from) : path(std::move(from)) {}
    void call() { run.progress = load_training(path, run.optimizer, &run.state); }
    void after_failure() { EXPECT_TRUE(result() == before) << "a part of the file was taken"; }
    Bytes result() const {
      Bytes all;
      run.optimizer.each_tensor(
          [&](const std::string&, ConstTensorView view) { append(all, bits(view)); });
      append(all, run.state);
      append(all, std::to_string(run.optimizer.steps()));
      return all;
    }
  };
  EXPECT_GT((fail_each_of<Loading, 31>(folder.file("training"))), 0);
}

TEST(AllocationFailure, ModelFolder) {
  struct Loading : Plain {
    std::string folder;
    std::unique_ptr<LanguageModel> model;
    explicit Loading(std::string from) : folder(std::move(from)) {}
    void call() { model = std::make_unique<LanguageModel>(LanguageModel::load(folder)); }
    Bytes result() const {
      Bytes all;
      append(all, model->fingerprint());
      append(all, to_json(model->config()));
      return all;
    }
  };
  for (const char* name : {"one", "sharded_bf16", "original"}) {
    SCOPED_TRACE(name);
    EXPECT_GT((fail_each_of<Loading, 17>(golden_folder(name))), 0);
  }

  struct Saved : Plain {
    const LanguageModel& model;
    TemporaryFolder folder;
    explicit Saved(const LanguageModel& of) : model(of) {}
    void call() { model.save(folder.path()); }
    void after_failure() {
      for (const std::string& name : names(folder)) {
        EXPECT_TRUE(name == "config.json" || name == "model.safetensors") << name;
      }
    }
    Bytes result() const {
      Bytes all;
      append(all, testing::read_file(folder.file("config.json")));
      append(all, testing::read_file(folder.file("model.safetensors")));
      return all;
    }
  };
  const LanguageModel model = LanguageModel::load(golden_folder("one"));
  EXPECT_GT((fail_each_of<Saved, 13>(std::cref(model))), 0);
}

TEST(AllocationFailure, Tokenizer) {
  struct Encoding : Plain {
    std::unique_ptr<Tokenizer> tokenizer;
    Ids ids;
    void call() {
      tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(golden_folder("tokenizer")));
      ids = tokenizer->encode("In the beginning, e\u0301 \xFF <|endoftext|> 12");
    }
    Bytes result() const {
      Bytes all;
      append(all, tokenizer->decode(ids));
      append(all, std::to_string(ids.size()));
      return all;
    }
  };
  EXPECT_GT((fail_each_of<Encoding, 17>()), 0);
}

// The bytes of a character that come one by one are held, or asked for again, but never twice.
TEST(AllocationFailure, TextStream) {
  struct Pushing : Plain {
    TextStream stream;
    std::size_t pushed = 0;
    std::string text;
    void call() {
      const std::string bytes = "a\xF0\x9F\x98\x80 and a text that is long enough to take memory";
      for (const std::size_t end : {2u, 3u, 4u, 60u}) {
        if (pushed >= end) continue;
        text.reserve(200);
        text += stream.push(bytes.substr(pushed, end - pushed));
        pushed = end;
      }
    }
    Bytes result() const {
      Bytes all;
      append(all, text);
      return all;
    }
  };
  EXPECT_GT(fail_each_of<Pushing>(), 0);
}

// ---- the cache --------------------------------------------------------------------------------

// What a cache counts is what it holds: it can be filled, used and emptied after any failure.
struct Caching : Plain {
  const LanguageModel& model;
  TemporaryFolder folder;
  std::unique_ptr<StateCache> cache;
  Stream stream{Device::cpu(), 1};

  explicit Caching(const LanguageModel& of) : model(of) {
    CacheOptions options;
    options.host_bytes = 20000;
    options.disk_bytes = 60000;
    options.folder = folder.path();
    options.keep_every = 4;
    cache = std::make_unique<StateCache>(model, options);
  }
  void call() {
    for (const std::int32_t first : {1, 2, 1}) {
      Generator generator(model, {}, stream);
      cache->read(generator, {first, 3, 4, 5, 6, 7, 8, 9, 10});
    }
  }
  Bytes result() {
    Bytes all;
    Generator generator(model, {}, stream);
    append(all, std::to_string(cache->read(generator, {1, 3, 4, 5, 6, 7, 8, 9, 10})));
    append(all, generator.state());
    const CacheCounts counts = cache->counts();
    EXPECT_LE(counts.host_bytes, 20000);
    EXPECT_LE(counts.disk_bytes, 60000);
    EXPECT_GE(counts.host_bytes, 0);
    EXPECT_GE(counts.disk_bytes, 0);
    for (const std::string& name : names(folder)) EXPECT_NE(name[0], '.') << name;
    return all;
  }
};

TEST(AllocationFailure, StateCache) {
  const LanguageModel model = small_model();
  EXPECT_GT((fail_each_of<Caching, 23>(std::cref(model))), 0);
}

}  // namespace
}  // namespace mamba
