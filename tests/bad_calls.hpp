// Calls that cannot work: each is an error of the library's own with a known text, and what it was
// given is as it was.
#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <mamba/mamba.hpp>

#include "testing.hpp"

namespace mamba::testing {

// The text that a call's error has; one that ends in "..." only has to begin so.
struct BadCall {
  std::string text;
  std::function<void()> call;
};

inline void expect_refused(
    const std::vector<BadCall>& calls,
    const std::function<std::string()>& operands = [] { return ""; }) {
  const std::string before = operands();
  for (const BadCall& row : calls) {
    SCOPED_TRACE(row.text);
    try {
      row.call();
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      const std::string text = error.what();
      const std::size_t open = row.text.find("...");
      EXPECT_EQ(text.substr(0, open), row.text.substr(0, open));
      EXPECT_NE(text.find(": expected "), std::string::npos) << text;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "not an error of the library: " << error.what();
    }
    EXPECT_EQ(operands(), before) << "something was written";
  }
}

inline std::string bytes(const ConstTensorView& view) {
  const std::vector<unsigned char> all = bits(view);
  return {all.begin(), all.end()};
}

inline std::string bytes(const StackState& state) {
  std::string all;
  for (const MambaState& layer : state.layers) {
    for (const Tensor* tensor : {&layer.conv, &layer.ssm}) {
      all += tensor->shape().to_string();
      if (*tensor) all += bytes(*tensor);
    }
  }
  return all;
}

constexpr std::int64_t huge = std::int64_t{1} << 62;
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

inline LanguageModelConfig small() {
  LanguageModelConfig config;
  config.layer.d_model = 8;
  config.layer.d_state = 4;
  config.n_layer = 2;
  config.vocab_size = 16;
  return config;
}

}  // namespace mamba::testing
