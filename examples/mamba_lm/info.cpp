// mamba-lm info: what is in a model folder.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include <mamba/device.hpp>

#include "commands.hpp"

namespace {

using mamba::Tensor;

void line(const char* name, std::int64_t value) {
  std::printf("%-17s %lld\n", name, static_cast<long long>(value));
}

void line(const char* name, const std::string& value) {
  std::printf("%-17s %s\n", name, value.c_str());
}

std::int64_t count_not_finite(const Tensor& weight) {
  const Tensor values = weight.to(mamba::Device::cpu(), mamba::DType::f32);
  const float* data = values.data<float>();
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < values.count(); ++i) count += std::isfinite(data[i]) ? 0 : 1;
  return count;
}

int info(const ModelFlags& flags) {
  const mamba::LanguageModel model = flags.load("info");
  const mamba::LanguageModelConfig& config = model.config();
  const mamba::LayerConfig& layer = config.layer;
  std::int64_t bytes = 0;
  model.each_weight([&](const std::string&, const Tensor& weight) { bytes += weight.bytes(); });

  line("architecture", std::string(mamba::name_of(layer.mixer)));
  line("d_model", layer.d_model);
  line("n_layer", config.n_layer);
  line("d_inner", layer.d_inner);
  line("d_state", layer.d_state);
  line("d_conv", layer.d_conv);
  if (layer.dt_rank > 0) line("dt_rank", layer.dt_rank);
  if (layer.head_dim > 0) {
    line("heads", layer.heads());
    line("head_dim", layer.head_dim);
    line("groups", layer.groups);
  }
  line("vocab", config.vocab_size);
  line("parameters", model.parameter_count());
  line("dtype", std::string(mamba::name_of(model.dtype())));
  line("bytes of weights", bytes);
  line("bytes of state", model.make_state(1).bytes());  // of one sequence
  line("fingerprint", model.fingerprint());
  line("kernels", mamba::cpu_kernels());  // of this machine's CPU

  // Allowed, since a damaged model may be what somebody wants to look at; but said.
  model.each_weight([](const std::string& name, const Tensor& weight) {
    const std::int64_t count = count_not_finite(weight);
    if (count == 0) return;
    std::printf("%-17s %s (%lld of %lld values)\n", "NaN or infinite", name.c_str(),
                static_cast<long long>(count), static_cast<long long>(weight.count()));
  });
  return 0;
}

}  // namespace

void add_info(CLI::App& app, Command& command) {
  CLI::App* sub =
      app.add_subcommand("info", "Sizes, parameters, dtype, bytes of state per sequence");
  const auto flags = std::make_shared<ModelFlags>();
  flags->add_folder(*sub);
  sub->callback([flags, &command] { command = [flags] { return info(*flags); }; });
}
