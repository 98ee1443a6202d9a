// Every error this library reports, in one form: "where: name: expected ..., got ...".
#pragma once

#include <stdexcept>
#include <string>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

// `where` is the operation or function, `name` the tensor, field, file or argument that is wrong.
// What can be known when a function is called is checked before any work is done: operands, states
// and files are then as they were. What only a CUDA device can find, in values that it reads (an id
// or a row out of range, a row without a finite logit) or because it fails, is thrown by a later
// call that waits for it; what was queued has run by then, as each operation says.
class Error : public std::runtime_error {
 public:
  Error(const std::string& where, const std::string& name, const std::string& expected,
        const std::string& got)
      : std::runtime_error(where + ": " + name + ": expected " + expected + ", got " + got) {}
};

// The call cannot work: a shape, dtype, device or value does not fit.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

// CUDA failed, is not in this build, or has no such device.
class DeviceError : public Error {
 public:
  DeviceError(const std::string& where, const std::string& name, const std::string& expected,
              const std::string& got, int code = 0)
      : Error(where, name, expected, got), code_(code) {}

  // The cudaError_t with which a call of the CUDA runtime failed; 0 where none did.
  int code() const noexcept { return code_; }

 private:
  int code_;
};

// A file lies about itself or is not of the promised form. (A file the system will not open, read
// or write is a plain Error.)
class FormatError : public Error {
 public:
  using Error::Error;
};

}  // namespace mamba
