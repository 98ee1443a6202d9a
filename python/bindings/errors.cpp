// The library's errors as Python's own, with their text as it is.
#include <mamba/error.hpp>

#include "bind.hpp"

namespace mamba::python {

PyObject* python_error(const Error& error) {
  if (dynamic_cast<const ArgumentError*>(&error) != nullptr) return PyExc_ValueError;
  if (dynamic_cast<const FormatError*>(&error) != nullptr) return PyExc_ValueError;
  if (dynamic_cast<const DeviceError*>(&error) != nullptr) return PyExc_RuntimeError;
  return PyExc_OSError;  // the system would not open, read or write a file
}

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& error) {
      PyErr_SetString(python_error(error), error.what());
    }
  });
}

}  // namespace mamba::python
