// The only switch over dtype.
#pragma once

#include <mamba/dtype.hpp>

namespace mamba::detail {

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>{}) with T the C++ type of a storage dtype (f32, bf16, f16).
template <class F>
decltype(auto) visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bf16:
      return f(Type<bf16>{});
    case DType::f16:
      return f(Type<f16>{});
    default:
      return f(Type<float>{});
  }
}

}  // namespace mamba::detail
