// What every binding needs: Python's arrays as views and tensors as arrays without a copy, devices,
// dtypes, streams and errors.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>

#include <mamba/error.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

#include "dlpack.hpp"

namespace nb = nanobind;

namespace mamba::python {

void bind_errors(nb::module_& m);
void bind_tensors(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_layers(nb::module_& m);
void bind_models(nb::module_& m);

// The kind of exception that an error is in Python.
PyObject* python_error(const Error& error);

// dense: read, and where the array is not contiguous its library makes a copy that is.
enum class Access { read, dense, write };

// An array of Python's, of whichever library, seen in place: PyTorch's tensors by the functions
// that PyTorch lends for it, all others by DLPack or the buffer protocol. None is absent. What the
// library has no view for (another dtype, a device that is neither a CPU nor CUDA, more than four
// dimensions, channels that are not contiguous, negative strides), and a read-only array that is to
// be written, is an ArgumentError that begins with `where: name`.
//
// It points: the array is the caller's for as long as this and its views are used.
class Operand {
 public:
  Operand(const char* where, const char* name, nb::handle array, Access access = Access::read);

  ConstTensorView view() const { return view_; }
  TensorView writable() const;  // of one made with Access::write
  Device device() const { return view_.device(); }

  // The CUDA stream on which the array's library works now; none where it does not say.
  std::optional<void*> current_stream() const;

 private:
  void see(nb::handle array);
  void take(const DLTensor& array);

  const char* where_;
  const char* name_;
  Access access_;
  ConstTensorView view_;
  nb::ndarray<nb::ro> imported_;            // empty for PyTorch's
  nb::object copy_;                         // see Access::dense
  const DLPackExchangeAPI* api_ = nullptr;  // of PyTorch's
};

// A dense array as a tensor of the library, without a copy: it holds the array until it ends.
Tensor to_tensor(const char* where, const char* name, nb::handle array);

enum class Framework { numpy, torch, dlpack };

// A tensor as an array that owns its memory from now on, without a copy; absent: None. NumPy's are
// on the CPU and have no bf16, else an ArgumentError; that of no framework is for whoever takes it
// by DLPack (torch.from_dlpack). The second form is of memory that `owner`
// keeps alive.
nb::object to_array(Tensor tensor, Framework framework = Framework::numpy);
nb::object to_array(const TensorView& view, nb::handle owner,
                    Framework framework = Framework::numpy);

// "cpu", "cuda", "cuda:1", or what prints as such, as torch.device does.
Device device_of(nb::handle device);
// "f32", "float32", torch.float32, numpy.float32, numpy.dtype("float32"), and so for bf16, f16 and
// i32; another is an ArgumentError.
DType dtype_of(nb::handle dtype);

// The stream for a call on `device`. On the CPU one with `threads` threads (0: one per core), on
// CUDA the one that borrows `cuda_stream`. It is the calling thread's and kept for its next call,
// with the scratch memory that it has.
Stream& stream_for(Device device, void* cuda_stream, int threads = 0);

}  // namespace mamba::python
