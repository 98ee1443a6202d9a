// The compiled part of the Python package mamba_cpp.
#include <mamba/version.hpp>

#include "bind.hpp"

NB_MODULE(_core, m) {
  m.doc() = "The compiled part of mamba_cpp; what is for users has its name in mamba_cpp itself.";
  m.attr("__version__") = mamba::version;
  mamba::python::bind_errors(m);
  mamba::python::bind_tensors(m);
  mamba::python::bind_ops(m);
  mamba::python::bind_layers(m);
  mamba::python::bind_models(m);
}
