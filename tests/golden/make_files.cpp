// Made the files of tests/golden/files: make_golden_files FOLDER. They are of the version that
// wrote them; later versions must still read them, so they are not to be made again when a format
// changes.
#include <filesystem>

#include <mamba/checkpoint.hpp>
#include <mamba/generator.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/state_file.hpp>

#include "files/golden_files.hpp"

namespace {

using namespace mamba;

void make_states(const std::string& folder) {
  save(folder + "/layer.state", golden_files::layer_state(2, DType::bf16, 0));
  StateMetadata metadata;
  metadata.fingerprint = "0123456789abcdef0123456789abcdef";
  metadata.tokens_seen = {7, 0, std::int64_t{1} << 40};
  metadata.notes["author"] = "make_files";
  const Tensor extra = golden_files::extra();
  save(folder + "/stack.state", golden_files::stack_state(3, DType::f16), metadata,
       {{"extra", extra}});
}

// A generation in the middle of a sampled text, and what a cache keeps of a prompt.
void make_generation(const std::string& folder) {
  const LanguageModel model =
      LanguageModel::load(std::string(MAMBA_GOLDEN_DIR) + "/" + golden_files::model_name);
  SamplingOptions sampling;
  sampling.temperature = 0.5f;
  sampling.top_k = 40;
  sampling.repetition_penalty = 1.25f;
  sampling.seed = 11;
  Generator generator(model, sampling);
  generator.read(golden_files::prompt());
  for (int i = 0; i < 3; ++i) generator.next();
  generator.save(folder + "/sampled.generation");

  CacheOptions options;
  options.host_bytes = 0;
  options.disk_bytes = 1 << 20;
  options.folder = folder + "/prefixes";
  StateCache cache(model, options);
  Generator reader(model);
  cache.read(reader, golden_files::prompt());
}

// A run in bf16, which has masters, with a carried state.
void make_training(const std::string& folder) {
  LanguageModel model = LanguageModel::random(golden_files::training_config(), 1, DType::bf16);
  LanguageModelWeights gradients = zero_gradients(model.config());
  AdamW optimizer(parameters(model, gradients));
  int first = 0;
  optimizer.each_tensor([&](const std::string&, TensorView view) {
    Tensor values(view.shape(), view.dtype());
    golden_files::fill(values, first++);
    Stream& stream = default_stream(Device::cpu());
    copy(values, view, stream);
    stream.synchronize();
  });
  optimizer.set_steps(5);
  TrainingProgress progress;
  progress.seed = 7;
  progress.draws = 9;
  progress.loss_scale.value = 1024;
  progress.loss_scale.good_steps = 3;
  progress.positions = {80, 0};
  progress.notes["text"] = "book.txt";
  const StackState carried = golden_files::stack_state(2, DType::bf16);
  save_training(folder + "/training.checkpoint", optimizer, &carried, progress);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::filesystem::create_directories(argv[1]);
  make_states(argv[1]);
  make_generation(argv[1]);
  make_training(argv[1]);
}
