// A hash (XXH3, 128 bits) of a model's configuration and of its weights as they are in its file.
#pragma once

#include <memory>
#include <string>

#include <mamba/config.hpp>
#include <mamba/dtype.hpp>

namespace mamba {

class Fingerprint {
 public:
  explicit Fingerprint(const ModelConfig& config);
  ~Fingerprint();
  void add(const std::string& name, const std::string& dtype, const void* data, std::int64_t bytes);
  std::string text() const;  // 32 hexadecimal digits

 private:
  void text(const std::string& value);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "F32" for f32: the name a safetensors file uses.
std::string file_dtype_name(DType dtype);

}  // namespace mamba
