// Runs of values between storage and f32, with vectors.
#pragma once

#include <cstdint>

#include <mamba/dtype.hpp>

namespace mamba::host {

// to[i] = from[i], widened from `dtype`.
void widen(const void* from, DType dtype, float* to, std::int64_t count);

// to[i] = sums[i] + bias[i], added in f32 and then rounded once. bias (of `bias_dtype`) may be
// nullptr. `to` may be `sums`.
void narrow(const float* sums, const void* bias, DType bias_dtype, void* to, DType dtype,
            std::int64_t count);

}  // namespace mamba::host
