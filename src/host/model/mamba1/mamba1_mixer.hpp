// Mamba-1 as one of the mixers. What it computes is in <mamba/mamba1.hpp>.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "host/model/mixers.hpp"

namespace mamba {

class Mamba1Mixer final : public HostMixer {
 public:
  MixerKind kind() const override { return MixerKind::mamba1; }

  // config.cpp
  LayerConfig resolve(LayerConfig config, const Complain& complain) const override;
  std::vector<std::string> identity(const LayerConfig& config) const override;
  const char* name() const override { return "Mamba1"; }
  void read_mamba_ssm(const Fields& ssm_cfg, LayerConfig& config) const override;
  std::vector<const char*> model_types() const override;
  PublishedAs published_as(const LayerConfig& config) const override;
  void read_hugging_face(const Fields& file, const std::string& model_type,
                         LayerConfig& config) const override;
  void write(const LayerConfig& config, Json& json) const override;
  std::vector<const char*> own_keys() const override;
  void read_own_options(const Fields& own, LayerConfig& config) const override;
  void write_own_options(const LanguageModelConfig& config, Json& own) const override;
  bool owns(const std::function<bool(const char*)>& has) const override;

  // weights.cpp
  detail::LayerWeightList weights(const LayerConfig& config, DType dtype) const override;
  LayerWeights random(const LayerConfig& config, DType dtype, std::uint64_t seed,
                      std::uint64_t layer, std::int64_t n_layer) const override;

  // run.cpp
  void forward(const detail::MixerForward& run, TensorView y, std::vector<Tensor>* kept,
               Stream& stream) const override;
  void backward(const detail::MixerBackward& run, std::vector<Tensor>& kept,
                Stream& stream) const override;

  // step.cpp
  bool step_at_once(const Stack& stack, float norm_epsilon, const ConstTensorView& x,
                    StackState& state, const TensorView& sum, const RowMap& rows,
                    const ConstTensorView& reset, Stream& stream) const override;
};

}  // namespace mamba
