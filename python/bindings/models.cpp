// Language models, tokenizers, generators and the states that they keep.
#include "bind.hpp"

namespace mamba::python {

void bind_models(nb::module_&) {}

}  // namespace mamba::python
