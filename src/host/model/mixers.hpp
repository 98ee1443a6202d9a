// The mixers that there are, and what a model's configuration, files and fresh weights ask of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <mamba/config.hpp>
#include <mamba/detail/mixer.hpp>
#include <mamba/weights.hpp>

#include "host/core/json.hpp"
#include "host/model/config/config_checks.hpp"
#include "host/model/config/config_fields.hpp"

namespace mamba {

struct PublishedAs {
  const char* model_type;
  const char* architecture;
};

class HostMixer : public detail::Mixer {
 public:
  virtual MixerKind kind() const = 0;

  // Fills in the zeros of its fields, and complains of the first that cannot be.
  virtual LayerConfig resolve(LayerConfig config, const Complain& complain) const = 0;
  // What tells two resolved configurations apart, for fingerprints: one text, and perhaps more.
  virtual std::vector<std::string> identity(const LayerConfig& config) const = 0;

  // The layers' part of config.json. In the form of mamba_ssm, "ssm_cfg" names its mixer:
  virtual const char* name() const = 0;
  virtual void read_mamba_ssm(const Fields& ssm_cfg, LayerConfig& config) const = 0;
  // In that of Hugging Face "model_type" does:
  virtual std::vector<const char*> model_types() const = 0;
  // What ends a text if the file does not say, as transformers has it.
  virtual std::int32_t usual_end() const { return 0; }
  virtual PublishedAs published_as(const LayerConfig& config) const = 0;
  virtual void read_hugging_face(const Fields& file, const std::string& model_type,
                                 LayerConfig& config) const = 0;
  virtual void write(const LayerConfig& config, Json& json) const = 0;
  // Under "mamba_cpp": what only this library knows, written only where it is not as published.
  virtual std::vector<const char*> own_keys() const = 0;
  virtual void read_own_options(const Fields& own, LayerConfig& config) const = 0;
  virtual void write_own_options(const LanguageModelConfig& config, Json& own) const = 0;

  // What config.json leaves to the tensors: `has` says whether the checkpoint's first layer has one
  // of a name. Whether these are its tensors, and what is not said of its layers:
  virtual bool owns(const std::function<bool(const char*)>& has) const = 0;
  virtual void complete(const Fields& file, const std::function<bool(const char*)>& has,
                        LayerConfig& config) const;

  // Fresh weights of layer number `layer` by the published recipe; tensor i of it is drawn from the
  // numbers 16 layer + i.
  virtual LayerWeights random(const LayerConfig& config, DType dtype, std::uint64_t seed,
                              std::uint64_t layer, std::int64_t n_layer) const = 0;
};

const std::vector<const HostMixer*>& mixers();
// An ArgumentError if there is no such mixer.
const HostMixer& host_mixer(MixerKind kind);
const HostMixer& host_mixer(const LayerConfig& config);

// The layer's weight of this name, as a layer names it ("D") or a model
// ("backbone.layers.3.mixer.D"), or nullptr.
const detail::LayerWeight* weight_named(const std::string& name,
                                        const detail::LayerWeightList& layer);

}  // namespace mamba
