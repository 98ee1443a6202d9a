// The published form against an independent float64 forward: tests/golden/README.md says how it was
// made.
#include <mamba/generator.hpp>
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/state_file.hpp>

#include <cstring>
#include <list>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

// A folder of tests/golden.
struct Checkpoint : std::string {
  using std::string::string;
};

}  // namespace

template <>
struct testing::Every<Checkpoint> {
  static std::vector<Checkpoint> all() {
    return {"base",
            "biased",
            "wide",
            "falcon",
            "bytes",
            "original",
            "one",
            "sharded_bf16",
            "mamba2_one",
            "mamba2_groups",
            "mamba2_h80",
            "mamba2_limits",
            "mamba2_codestral",
            "mamba2_original",
            "mamba2_gate"};
  }
  static std::string name(const Checkpoint& checkpoint) { return checkpoint; }
};

namespace {

using testing::devices;
using testing::golden_folder;
using testing::relative_error;
using testing::values;

class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(golden_folder(name) + "/golden.safetensors"),
        ids(file_.read(file_.entry("input_ids"))),
        logits(doubles("logits")),
        conv_states(doubles("conv_states")),
        ssm_states(doubles("ssm_states")),
        prompt(list("prompt_ids")),
        greedy(list("greedy_ids")) {}

 private:
  std::vector<double> doubles(const char* name) const {
    const std::vector<unsigned char> bytes = file_.bytes(file_.entry(name));
    EXPECT_EQ(file_.entry(name).dtype, "F64");
    std::vector<double> result(bytes.size() / sizeof(double));
    if (!bytes.empty()) std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
  }
  std::vector<std::int32_t> list(const char* name) const {
    const Tensor tensor = file_.read(file_.entry(name));
    return {tensor.data<std::int32_t>(), tensor.data<std::int32_t>() + tensor.count()};
  }
  SafetensorsFile file_;

 public:
  Tensor ids;                                // [2, time]
  std::vector<double> logits;                // [2, time, vocab]
  std::vector<double> conv_states;           // [layers, 2, conv channels, d_conv - 1]
  std::vector<double> ssm_states;            // [layers, 2, d_inner, d_state]
  std::vector<std::int32_t> prompt, greedy;  // 9 and 24 ids
};

std::vector<double> all_layers(const StackState& state, Tensor MambaState::*member) {
  std::vector<double> joined;
  for (const MambaState& layer : state.layers) {
    const std::vector<double> one = values(layer.*member);
    joined.insert(joined.end(), one.begin(), one.end());
  }
  return joined;
}

struct Result {
  std::vector<double> logits, conv, ssm;
};

Result run_in_chunks(const LanguageModel& model, const Tensor& host_ids, std::int64_t chunk) {
  const Tensor ids = host_ids.to(model.device());
  const std::int64_t time = ids.dim(1);
  StackState state = model.make_state(ids.dim(0));
  Tensor logits({ids.dim(0), time, model.config().vocab_size}, DType::f32, model.device());
  Stream& stream = default_stream(model.device());
  for (std::int64_t first = 0; first < time; first += chunk) {
    const std::int64_t count = std::min(chunk, time - first);
    Tensor part({ids.dim(0), count, model.config().vocab_size}, DType::f32, model.device());
    model.forward(ids.view().columns(first, count), state, Logits::all(part), stream);
    copy(part, logits.view().steps(first, count), stream);
    stream.synchronize();
  }
  return {values(logits), all_layers(state, &MambaState::conv),
          all_layers(state, &MambaState::ssm)};
}

TEST_EACH(GoldenTest, LogitsAndStatesWithin1e5OfFloat64InAnyChunks, Checkpoint checkpoint,
          Device device) {
  const Golden golden(checkpoint);
  const LanguageModel model = LanguageModel::load(golden_folder(checkpoint), DType::f32, device);
  const std::int64_t time = golden.ids.dim(1);
  const Result whole = run_in_chunks(model, golden.ids, time);
  for (std::int64_t chunk : {time, std::int64_t{1}, std::int64_t{7}, std::int64_t{63},
                             std::int64_t{64}, std::int64_t{65}}) {
    SCOPED_TRACE("chunk " + std::to_string(chunk));
    const Result run = run_in_chunks(model, golden.ids, chunk);
    EXPECT_LE(relative_error(run.logits, golden.logits), 1e-5);
    EXPECT_LE(relative_error(run.conv, golden.conv_states), 1e-5);
    EXPECT_LE(relative_error(run.ssm, golden.ssm_states), 1e-5);
    EXPECT_LE(relative_error(run.logits, whole.logits), 5e-6);
    EXPECT_LE(relative_error(run.conv, whole.conv), 5e-6);
    EXPECT_LE(relative_error(run.ssm, whole.ssm), 5e-6);
  }
}

// Half of the text is read on one device; its state goes through a file to another, which reads on.
TEST_EACH(GoldenTest, AStateSavedOnOneDeviceGoesOnOnAnother, Checkpoint checkpoint) {
  constexpr std::int64_t half = 37;
  const Golden golden(checkpoint);
  const std::int64_t time = golden.ids.dim(1);
  const testing::TemporaryFolder folder;
  std::list<LanguageModel> models;
  for (Device device : devices()) {
    models.push_back(LanguageModel::load(golden_folder(checkpoint), DType::f32, device));
  }
  const auto read = [&](const LanguageModel& model, std::int64_t first, std::int64_t count,
                        StackState& state) {
    const Tensor ids = golden.ids.to(model.device());
    Tensor logits({2, count, model.config().vocab_size}, DType::f32, model.device());
    Stream& stream = default_stream(model.device());
    model.forward(ids.view().columns(first, count), state, Logits::all(logits), stream);
    stream.synchronize();
    return values(logits);
  };
  const auto vocab = static_cast<std::size_t>(models.front().config().vocab_size);
  std::vector<double> expected;  // logits of the second half
  for (std::size_t b = 0; b < 2; ++b) {
    const auto steps = static_cast<std::size_t>(time);
    const auto row = golden.logits.begin() + static_cast<long>(b * steps * vocab);
    expected.insert(expected.end(), row + static_cast<long>(half * vocab),
                    row + static_cast<long>(steps * vocab));
  }
  for (const LanguageModel& first : models) {
    StackState state = first.make_state(2);
    read(first, 0, half, state);
    StateMetadata metadata;
    metadata.fingerprint = first.fingerprint();
    metadata.tokens_seen = {half, half};
    save(folder.file("state"), state, metadata);
    for (const LanguageModel& second : models) {
      SCOPED_TRACE(first.device().name() + " to " + second.device().name());
      SavedState saved = load_state(folder.file("state"), second.device());
      EXPECT_EQ(saved.metadata.fingerprint, second.fingerprint());
      const std::vector<double> logits = read(second, half, time - half, saved.state);
      EXPECT_LE(relative_error(logits, expected), 1e-5);
      EXPECT_LE(relative_error(all_layers(saved.state, &MambaState::conv), golden.conv_states),
                1e-5);
      EXPECT_LE(relative_error(all_layers(saved.state, &MambaState::ssm), golden.ssm_states), 1e-5);
    }
  }
}

TEST_EACH(GoldenTest, GreedyTextIsEqual, Checkpoint checkpoint, Device device) {
  const Golden golden(checkpoint);
  const LanguageModel model = LanguageModel::load(golden_folder(checkpoint), DType::f32, device);
  for (std::size_t cut : {std::size_t{0}, std::size_t{4}}) {  // the prompt whole, and in two pieces
    Generator generator(model);
    generator.read({golden.prompt.begin(), golden.prompt.begin() + static_cast<long>(cut)});
    generator.read({golden.prompt.begin() + static_cast<long>(cut), golden.prompt.end()});
    GenerateOptions options;
    options.max_tokens = static_cast<std::int64_t>(golden.greedy.size());
    options.ignore_eos = true;
    EXPECT_EQ(generator.generate(options).tokens, golden.greedy) << device.name();
  }
}

// A text that stops on one device goes on on another, out of its file alone.
TEST_EACH(GoldenTest, AGenerationSavedOnOneDeviceGoesOnOnAnother, Checkpoint checkpoint) {
  const Golden golden(checkpoint);
  const testing::TemporaryFolder folder;
  std::list<LanguageModel> models;
  for (Device device : devices()) {
    models.push_back(LanguageModel::load(golden_folder(checkpoint), DType::f32, device));
  }
  GenerateOptions options;
  options.ignore_eos = true;
  for (const LanguageModel& from : models) {
    for (std::size_t stop : {0, 1, 11}) {
      Generator first(from);
      first.read(golden.prompt);
      options.max_tokens = static_cast<std::int64_t>(stop);
      const std::vector<std::int32_t> begun = first.generate(options).tokens;
      first.save(folder.file("generation"));
      options.max_tokens = static_cast<std::int64_t>(golden.greedy.size() - stop);
      for (const LanguageModel& to : models) {
        SCOPED_TRACE(from.device().name() + " to " + to.device().name());
        Generator second = Generator::restore(folder.file("generation"), to);
        std::vector<std::int32_t> text = begun;
        const std::vector<std::int32_t> rest = second.generate(options).tokens;
        text.insert(text.end(), rest.begin(), rest.end());
        EXPECT_EQ(text, golden.greedy) << "stopped after " << stop;
      }
    }
  }
}

// With 16-bit storage the error is that of rounding weights and activations: a loose sanity bound
// (the operations' own tests hold the sharp ones), from the amplification of relative weight errors
// that the golden script measured, at most 9.
TEST_EACH(GoldenTest, SixteenBitStorageStaysNearFloat64, Checkpoint checkpoint, Device device,
          testing::OneOf<DType::bf16, DType::f16> dtype) {
  const Golden golden(checkpoint);
  const LanguageModel model = LanguageModel::load(golden_folder(checkpoint), dtype, device);
  const Result run = run_in_chunks(model, golden.ids, golden.ids.dim(1));
  EXPECT_LE(relative_error(run.logits, golden.logits), 9 * testing::roundoff(dtype))
      << device.name() << " " << name_of(dtype);
}

TEST_EACH(GoldenTest, SavedTensorsAreBitIdentical, Checkpoint checkpoint) {
  const testing::TemporaryFolder folder;
  const LanguageModel model = LanguageModel::load(golden_folder(checkpoint));
  model.save(folder.file("copy"));
  const LanguageModel copy = LanguageModel::load(folder.file("copy"));
  EXPECT_EQ(copy.fingerprint(), model.fingerprint());
  EXPECT_EQ(copy.dtype(), model.dtype());
  const SafetensorsFile saved(folder.file("copy/model.safetensors"));
  std::size_t compared = 0;
  for (const auto& part : std::filesystem::directory_iterator(golden_folder(checkpoint))) {
    if (part.path().extension() != ".safetensors") continue;
    if (part.path().stem() == "golden" || part.path().stem() == "gradients") continue;
    const SafetensorsFile original(part.path().string());
    for (const SafetensorsEntry& entry : original.entries()) {
      if (entry.name == "lm_head.weight" && model.config().tie_embeddings) continue;  // a copy
      std::string name = entry.name == "backbone.embedding.weight"
                             ? std::string("backbone.embeddings.weight")
                             : entry.name;
      if (name.rfind("model.", 0) == 0) name = name.substr(6);
      const SafetensorsEntry& again = saved.entry(name);
      EXPECT_EQ(again.dtype, entry.dtype) << name;
      EXPECT_EQ(again.shape, entry.shape) << name;
      EXPECT_EQ(saved.bytes(again), original.bytes(entry)) << name;
      ++compared;
    }
  }
  EXPECT_EQ(compared, saved.entries().size());
}

TEST_EACH(Published130m, GreedyTextAndLogits, Device device) {
  const char* folder = std::getenv("MAMBA_130M");
  if (folder == nullptr) GTEST_SKIP() << "set MAMBA_130M to a folder with mamba-130m-hf";
  const std::vector<double> published{
      -55.6909, -69.7903, -49.8981, -51.7581, -57.6544, -57.9368, -56.9591, -57.9033,
      -54.6787, -55.9261, -55.3011, -58.0765, -60.5642, -47.0176, -52.0344, -49.7836,
      -55.9463, -57.8957, -56.7627, -57.1080, -57.3434, -58.3015, -57.7875, -58.7760,
      -59.6037, -59.0665, -58.7087, -52.9293, -53.4654, -57.3466, -56.9294, -55.7314,
      -53.3141, -55.8171, -56.9879, -56.9121, -56.2139, -54.7198, -56.4134, -57.4825};
  const LanguageModel model = LanguageModel::load(folder, DType::f32, device);
  const Tensor ids = Tensor::from<std::int32_t>({8262, 849, 403, 368, 2509, 32}, {1, 6});
  const Result run = run_in_chunks(model, ids, 6);  // "Hey how are you doing?"
  for (std::size_t i = 0; i < published.size(); ++i) {
    EXPECT_NEAR(run.logits[i], published[i], 1e-3) << i;
  }
  const Tokenizer tokenizer = Tokenizer::load(folder);
  Generator generator(model);
  generator.read(tokenizer.encode("Hey how are you doing?"));
  GenerateOptions ten;
  ten.max_tokens = 10;
  EXPECT_EQ(tokenizer.decode(generator.generate(ten).tokens), "\n\nI'm so glad you're here.");
}

}  // namespace
}  // namespace mamba
