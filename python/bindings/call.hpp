// What a function of Python's does for each call on arrays: it sees them in place, and runs on the
// stream on which they are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mamba/stream.hpp>

#include "bind.hpp"

namespace mamba::python {

using Array = nb::handle;
using CudaStream = std::optional<std::uintptr_t>;

// One call of an operation: its operands, seen in place, and the stream that
// they run on.
class Call {
 public:
  Call(const char* where, CudaStream cuda_stream, int threads)
      : where_(where), cuda_stream_(cuda_stream), threads_(threads) {
    operands_.reserve(24);
  }

  ConstTensorView in(const char* name, Array array) {
    return operands_.emplace_back(where_, name, array).view();
  }
  // Parameters and states, which are small.
  ConstTensorView dense(const char* name, Array array) {
    return operands_.emplace_back(where_, name, array, Access::dense).view();
  }
  TensorView out(const char* name, Array array) {
    return operands_.emplace_back(where_, name, array, Access::write).writable();
  }

  // The stream of the first operand, on which its library works now.
  Stream& stream() const {
    const Device device = operands_.front().device();
    if (device.is_cpu()) return stream_for(device, nullptr, threads_);
    if (cuda_stream_) return stream_for(device, reinterpret_cast<void*>(*cuda_stream_));
    const std::optional<void*> current = operands_.front().current_stream();
    if (!current) {
      throw ArgumentError(where_, "stream", "a cudaStream_t, as these arrays do not tell theirs",
                          "None");
    }
    return stream_for(device, *current);
  }

  template <class Op>
  void run(const Op& op) const {
    Stream& on = stream();
    const nb::gil_scoped_release others_may_run;
    mamba::run(op, on);
  }
  // The same where Python's names are another's than the library's:
  // mamba_ssm's.
  template <class Op>
  void run_renamed(const Op& op) const {
    try {
      run(op);
    } catch (const ArgumentError& error) {
      std::string text = error.what();
      for (const auto& [ours, theirs] :
           {std::pair{": x: ", ": u: "}, std::pair{": dt: ", ": delta: "},
            std::pair{": dt_bias: ", ": delta_bias: "}, std::pair{": A_log: ", ": A: "}}) {
        const std::size_t at = text.find(ours);
        if (at != std::string::npos) text.replace(at, std::string(ours).size(), theirs);
      }
      throw nb::value_error(text.c_str());
    }
  }

 private:
  const char* where_;
  CudaStream cuda_stream_;
  int threads_;
  std::vector<Operand> operands_;
};

}  // namespace mamba::python
