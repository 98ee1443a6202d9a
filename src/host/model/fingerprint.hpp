// A hash (XXH3, 128 bits) of a model's configuration and of its weights as they are in its file.
#pragma once

#include <memory>
#include <string>

#include <mamba/config.hpp>

namespace mamba {

class Fingerprint {
 public:
  explicit Fingerprint(const LanguageModelConfig& config);
  ~Fingerprint();
  void add(const std::string& name, const std::string& dtype, const void* data, std::int64_t bytes);
  std::string text() const;  // 32 hexadecimal digits

 private:
  void text(const std::string& value);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mamba
