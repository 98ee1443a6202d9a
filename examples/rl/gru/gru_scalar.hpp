// One unit of a GRU at one step, the same on the host and in CUDA kernels (see random.hpp), but for
// the functions that make r, z and n: on CUDA those of gru_math.cuh.
#pragma once

#include <cmath>

namespace mamba_rl {

constexpr float gate(float x) { return 1 / (1 + std::exp(-x)); }

// What a unit's next h changes by, per change of each of these.
struct GruSlopes {
  float i_r, i_z, i_n, g_n, h;
};

struct GruUnit {
  float r, z, n;
  float g_n;  // W_n h + b_n

  constexpr float next(float h) const { return z * h + (1 - z) * n; }

  constexpr GruSlopes slopes(float h) const {
    const float i_n = (1 - z) * (1 - n * n);
    return {i_n * g_n * (r * (1 - r)), (h - n) * (z * (1 - z)), i_n, i_n * r, z};
  }
};

// From the arguments of r and z and the two parts of n's.
inline GruUnit gru_unit(float r, float z, float i_n, float g_n) {
  const float open = gate(r);
  return {open, gate(z), std::tanh(i_n + open * g_n), g_n};
}

}  // namespace mamba_rl
