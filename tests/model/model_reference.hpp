// A language model in double precision: plain loops around LayerReference.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>

#include "model/layer_reference.hpp"

namespace mamba::testing {

class ModelReference {
 public:
  explicit ModelReference(const LanguageModel& model)
      : embedding(values(model.embedding())),
        head(model.config().tie_embeddings ? std::vector<double>() : values(model.head())),
        c_(model.config()) {
    for (std::size_t i = 0; i < model.stack().size(); ++i) {
      layers.emplace_back(model.stack().layer(i));
    }
    for (std::size_t i = 0; i <= model.stack().size(); ++i) {
      norms.push_back(values(model.stack().norm(i)));
    }
  }

  std::vector<double> embedding, head;  // head is empty when tied
  std::vector<LayerReference> layers;
  std::vector<std::vector<double>> norms;  // the last is norm_f

  // The operand that a published name stands for.
  std::vector<double>& weight(const std::string& name) {
    if (name == "backbone.embeddings.weight") return embedding;
    if (name == "lm_head.weight") return head;
    if (name == "backbone.norm_f.weight") return norms.back();
    const std::string rest = name.substr(std::string("backbone.layers.").size());
    const auto i = static_cast<std::size_t>(std::stoi(rest));
    const std::string within = rest.substr(rest.find('.') + 1);
    if (within == "norm.weight") return norms[i];
    return layers[i].weights[within.substr(std::string("mixer.").size())];
  }

  // Logits [batch, time, vocab_size]; conv and ssm are those of each layer and move on.
  std::vector<double> forward(const std::vector<std::int32_t>& ids, std::int64_t batch,
                              const std::vector<std::int32_t>& reset,
                              std::vector<std::vector<double>>& conv,
                              std::vector<std::vector<double>>& ssm) const {
    const auto width = static_cast<std::size_t>(c_.layer.d_model);
    std::vector<double> residual;
    for (const std::int32_t id : ids) {
      for (std::size_t i = 0; i < width; ++i) {
        residual.push_back(embedding[static_cast<std::size_t>(id) * width + i]);
      }
    }
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const std::vector<double> branch =
          layers[l].forward(normed(residual, norms[l]), batch, reset, conv[l], ssm[l]);
      for (std::size_t i = 0; i < residual.size(); ++i) residual[i] += branch[i];
    }
    const std::vector<double> hidden = normed(residual, norms.back());
    const std::vector<double>& matrix = head.empty() ? embedding : head;
    std::vector<double> logits;
    for (std::size_t row = 0; row < ids.size(); ++row) {
      for (std::int64_t v = 0; v < c_.vocab_size; ++v) {
        double sum = 0;
        for (std::size_t i = 0; i < width; ++i) {
          sum += matrix[static_cast<std::size_t>(v) * width + i] * hidden[row * width + i];
        }
        logits.push_back(sum);
      }
    }
    return logits;
  }

 private:
  std::vector<double> normed(const std::vector<double>& x,
                             const std::vector<double>& weight) const {
    const std::size_t width = weight.size();
    std::vector<double> y(x.size());
    for (std::size_t row = 0; row < x.size() / width; ++row) {
      double squares = 0;
      for (std::size_t i = 0; i < width; ++i) squares += x[row * width + i] * x[row * width + i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + c_.norm_epsilon);
      for (std::size_t i = 0; i < width; ++i) {
        y[row * width + i] = x[row * width + i] * scale * weight[i];
      }
    }
    return y;
  }

  LanguageModelConfig c_;
};

}  // namespace mamba::testing
