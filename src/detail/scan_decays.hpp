// What both devices ask of the decays of a SelectiveScan or its gradient.
#pragma once

#include <cstdint>

#include <mamba/tensor_view.hpp>

namespace mamba::detail {

// A_log, or A in its place: of the same shape and dtype.
template <class Op>
const ConstTensorView& decays_of(const Op& op) {
  return op.A_log ? op.A_log : op.A;
}
template <class Op>
std::int64_t d_state_of(const Op& op) {
  return decays_of(op).dim(1);
}

// Whether delta A may be above zero. With A_log and softplus it is not: a decay is at most 1, and
// so is a product of decays.
template <class Op>
bool may_grow(const Op& op) {
  return op.A || !op.softplus;
}

}  // namespace mamba::detail
