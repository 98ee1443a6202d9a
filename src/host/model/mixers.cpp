#include "host/model/mixers.hpp"

#include <fmt/format.h>

#include <string_view>

#include <mamba/error.hpp>

#include "host/model/mamba1/mamba1_mixer.hpp"
#include "host/model/mamba2/mamba2_mixer.hpp"

namespace mamba {

// The list. All that differs between architectures is behind it.
const std::vector<const HostMixer*>& mixers() {
  static const Mamba1Mixer mamba1;
  static const Mamba2Mixer mamba2;
  static const std::vector<const HostMixer*> all{&mamba1, &mamba2};
  return all;
}

// In both published forms: which biases there are.
void HostMixer::complete(const Fields& file, const std::function<bool(const char*)>& has,
                         LayerConfig& layer) const {
  if (file.has("ssm_cfg")) return;  // mamba_ssm's form says what it has
  if (!file.has("use_bias")) layer.use_bias = has("in_proj.bias");
  if (!file.has("use_conv_bias")) layer.use_conv_bias = has("conv1d.bias");
}

const HostMixer& host_mixer(MixerKind kind) {
  for (const HostMixer* mixer : mixers()) {
    if (mixer->kind() == kind) return *mixer;
  }
  throw ArgumentError("LayerConfig", "mixer", "a MixerKind",
                      fmt::format("{}", static_cast<int>(kind)));
}

const HostMixer& host_mixer(const LayerConfig& config) { return host_mixer(config.mixer); }

const char* name_of(MixerKind mixer) { return host_mixer(mixer).name(); }

const detail::LayerWeight* weight_named(const std::string& name,
                                        const detail::LayerWeightList& layer) {
  constexpr std::string_view before = ".mixer.";
  const std::size_t found = name.rfind(before);
  const std::size_t first = found == std::string::npos ? 0 : found + before.size();
  for (const detail::LayerWeight& one : layer) {
    if (std::string_view(name).substr(first) == one.name) return &one;
  }
  return nullptr;
}

namespace detail {

const Mixer& mixer_of(const LayerConfig& config) { return host_mixer(config); }

LayerWeightList layer_weights(const LayerConfig& config, DType dtype) {
  return host_mixer(config).weights(config, dtype);
}

bool Mixer::step_at_once(const Stack&, float, const ConstTensorView&, StackState&,
                         const TensorView&, const RowMap&, const ConstTensorView&, Stream&) const {
  return false;
}

}  // namespace detail
}  // namespace mamba
