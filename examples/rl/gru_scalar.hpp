// One unit of a GRU at one step, the same on the host and in CUDA kernels (see random.hpp).
#pragma once

#include <cmath>

namespace mamba_rl {

constexpr float gate(float x) { return 1 / (1 + std::exp(-x)); }

// Of one unit: i the projected input and g = W h + b, of r, z and n; h what it was.
struct GruUnit {
  float r, z, n;

  constexpr GruUnit(float i_r, float i_z, float i_n, float g_r, float g_z, float g_n)
      : r(gate(i_r + g_r)), z(gate(i_z + g_z)), n(std::tanh(i_n + r * g_n)) {}

  constexpr float next(float h) const { return n + z * (h - n); }
};

// From dh, the gradient of what next() gave: of the projected inputs, of g_n (those of g_r and g_z
// are those of i_r and i_z), and of h on its direct way.
struct GruUnitGrad {
  float di_r, di_z, di_n, dg_n, dh;

  constexpr GruUnitGrad(const GruUnit& unit, float h, float g_n, float gradient)
      : di_r(0), di_z(0), di_n(0), dg_n(0), dh(gradient * unit.z) {
    di_n = gradient * (1 - unit.z) * (1 - unit.n * unit.n);
    di_z = gradient * (h - unit.n) * unit.z * (1 - unit.z);
    dg_n = di_n * unit.r;
    di_r = di_n * g_n * unit.r * (1 - unit.r);
  }
};

}  // namespace mamba_rl
