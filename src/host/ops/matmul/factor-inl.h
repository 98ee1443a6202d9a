// How the stored rows of a factor become f32 lanes, compiled once for every Highway target: the
// only place that knows. A new storage is a StoredRow and a line of visit_rows().
#if defined(MAMBA_HOST_OPS_MATMUL_FACTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_MATMUL_FACTOR_INL_H_
#undef MAMBA_HOST_OPS_MATMUL_FACTOR_INL_H_
#else
#define MAMBA_HOST_OPS_MATMUL_FACTOR_INL_H_
#endif

#include "detail/visit.hpp"
#include "host/ops/matmul/factor.hpp"
#include "host/ops/storage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

template <class Stored>
struct StoredRow {
  const Stored* from;

  StoredRow(const Factor& factor, std::int64_t row)
      : from(static_cast<const Stored*>(factor.data) + factor.rows.offset(row)) {}

  // A vector of elements from `i` on.
  HWY_INLINE F32Vec lanes(std::int64_t i) const { return load(from + i); }
  // The first `count` lanes of one, fewer than a vector: nothing beyond them is read; the others
  // are zero.
  HWY_INLINE F32Vec part(std::int64_t i, std::size_t count) const {
    return load_part(from + i, count);
  }
};

// f(Type<Row>{}) with the kind of row that the factor has.
template <class F>
void visit_rows(const Factor& factor, F&& f) {
  detail::visit(factor.dtype,
                [&](auto type) { f(detail::Type<StoredRow<typename decltype(type)::type>>{}); });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
