// Texts by a Mamba-2: what stands on a layer neither knows nor asks which one it is.
#include <mamba/generator.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/speculative.hpp>
#include <mamba/state_cache.hpp>

#include "each.hpp"
#include "files.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::golden_folder;

using Ids = std::vector<std::int32_t>;

Ids golden_ids(const char* name) {
  const SafetensorsFile file(golden_folder("mamba2_one") + "/golden.safetensors");
  const Tensor ids = file.read(file.entry(name));
  return Ids(ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.count());
}

GenerateOptions tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return options;
}

LanguageModel golden(Device device) {
  return LanguageModel::load(golden_folder("mamba2_one"), DType::f32, device);
}

// Of either architecture, of the same vocabulary.
LanguageModel draft_of(MixerKind mixer, Device device) {
  LanguageModelConfig config;
  config.layer.mixer = mixer;
  config.layer.d_model = 16;
  config.layer.d_state = 8;
  if (mixer == MixerKind::mamba2) config.layer.head_dim = 8;
  config.n_layer = 1;
  config.vocab_size = 40;
  return LanguageModel::random(config, 1, DType::f32, device);
}

TEST_EACH(Mamba2Generate, SpeculationTakesADraftOfEitherArchitecture, Device device,
          MixerKind mixer) {
  const LanguageModel model = golden(device), small = draft_of(mixer, device);
  for (const std::int64_t proposals : {1, 3, 7}) {
    Generator target(model), draft(small);
    Speculation speculation(target, draft, proposals);
    speculation.read(golden_ids("prompt_ids"));
    EXPECT_EQ(speculation.generate(tokens(24)).tokens, golden_ids("greedy_ids")) << proposals;
  }
}

TEST_EACH(Mamba2Generate, MembersOfAPoolAndForksWriteWhatTheyWouldAlone, Device device) {
  const LanguageModel model = golden(device);
  GeneratorPool pool(model, 4);
  Generator first = pool.make(), other = pool.make();
  Generator::Group group{&first, &other};
  std::vector<Ids> prompts{golden_ids("prompt_ids"), {5, 6}};
  Generator::read(group, prompts);
  Ids text;
  for (int i = 0; i < 7; ++i) text.push_back(Generator::next(group)[0].token);
  Generator branch = first.fork();
  other.read({1, 2, 3});
  Generator::Group three{&branch, &other, &first};
  Ids branched = text;
  for (int i = 0; i < 17; ++i) {
    const std::vector<Chosen> chosen = Generator::next(three);
    branched.push_back(chosen[0].token);
    text.push_back(chosen[2].token);
  }
  EXPECT_EQ(text, golden_ids("greedy_ids"));
  EXPECT_EQ(branched, text);
}

TEST_EACH(Mamba2Generate, AKnownPrefixIsNotReadAgain, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options;
  options.keep_every = 4;
  StateCache cache(model, options);
  for (const std::int64_t known : {0, 9}) {
    Generator generator(model);
    EXPECT_EQ(cache.read(generator, golden_ids("prompt_ids")), known);
    EXPECT_EQ(generator.generate(tokens(24)).tokens, golden_ids("greedy_ids"));
  }
}

}  // namespace
}  // namespace mamba
