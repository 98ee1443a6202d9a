// The operations, on whatever arrays Python has.
#include "bind.hpp"

namespace mamba::python {

void bind_ops(nb::module_&) {}

}  // namespace mamba::python
