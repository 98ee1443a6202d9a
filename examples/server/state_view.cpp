#include "state_view.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace server {

namespace {

constexpr std::int64_t most = 64;  // rows and columns of a map

double root_mean_square(const mamba::Tensor& tensor) {
  double sum = 0;
  for (const float value : tensor.to_vector<float>()) sum += double{value} * value;
  return tensor.count() > 0 ? std::sqrt(sum / static_cast<double>(tensor.count())) : 0;
}

double distance(const mamba::Tensor& a, const mamba::Tensor& b) {
  const std::vector<float> x = a.to_vector<float>();
  const std::vector<float> y = b.to_vector<float>();
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = double{x[i]} - y[i];
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

// One object a layer, with value(tensor of a, tensor of b) of each tensor under its name.
template <class F>
Json by_layer(const mamba::StackState& a, const mamba::StackState& b, F value) {
  Json layers = Json::array();
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    Json layer{{"layer", i}};
    for (const mamba::StateTensor& one : mamba::state_tensors) {
      layer[one.name] = value(a.layers[i].*one.tensor, b.layers[i].*one.tensor);
    }
    layers.push_back(std::move(layer));
  }
  return {{"layers", std::move(layers)}};
}

}  // namespace

Json layers_of(const mamba::StackState& state) {
  return by_layer(state, state, [](const mamba::Tensor& tensor, const mamba::Tensor&) {
    return root_mean_square(tensor);
  });
}

Json difference_of(const mamba::StackState& a, const mamba::StackState& b) {
  return by_layer(a, b, distance);
}

Json map_of(const mamba::StackState& state, std::int64_t layer) {
  const mamba::Tensor& ssm = state.layers.at(static_cast<std::size_t>(layer)).ssm;
  const std::int64_t channels = ssm.dim(1);
  const std::int64_t width = ssm.dim(2);
  const std::int64_t rows = std::min(channels, most);
  const std::int64_t columns = std::min(width, most);
  const std::vector<float> values = ssm.to_vector<float>();
  std::vector<std::vector<double>> sums(static_cast<std::size_t>(rows),
                                        std::vector<double>(static_cast<std::size_t>(columns)));
  std::vector<std::vector<double>> counts = sums;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    const auto row = static_cast<std::size_t>(channel * rows / channels);
    for (std::int64_t i = 0; i < width; ++i) {
      const auto column = static_cast<std::size_t>(i * columns / width);
      const double value = values[static_cast<std::size_t>(channel * width + i)];
      sums[row][column] += value * value;
      counts[row][column] += 1;
    }
  }
  Json matrix = Json::array();
  for (std::size_t row = 0; row < sums.size(); ++row) {
    Json line = Json::array();
    for (std::size_t column = 0; column < sums[row].size(); ++column) {
      line.push_back(std::sqrt(sums[row][column] / counts[row][column]));
    }
    matrix.push_back(std::move(line));
  }
  return {{"layer", layer},
          {"channels", channels},
          {"rows", rows},
          {"columns", columns},
          {"values", std::move(matrix)}};
}

}  // namespace server
