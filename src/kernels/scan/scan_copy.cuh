// Tiles of [steps, columns] between memory and shared memory, 16 bytes at a time where that is
// aligned. What is beyond the end of time or of the columns arrives as zeros.
#pragma once

#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/vec.cuh"
#include "kernels/scan/scan_operands.cuh"

namespace mamba::cuda {

// A tile of an operand in memory: `steps` steps and `columns` columns of it exist.
struct ScanTile {
  const char* data;
  unsigned pitch;  // bytes from step to step
  int steps, columns;

  template <class T>
  __device__ __forceinline__ static ScanTile of(const ScanTrack& track, std::int64_t b,
                                                std::int64_t first, int steps, int column,
                                                int columns) {
    return {reinterpret_cast<const char*>(track.at<T>(b, first) + column),
            static_cast<unsigned>(track.step_pitch) * static_cast<unsigned>(sizeof(T)), steps,
            columns};
  }
  template <class T>
  __device__ __forceinline__ T* at(int t, int c) const {
    const char* step = data + std::uint64_t{static_cast<unsigned>(t)} * pitch;
    return reinterpret_cast<T*>(const_cast<char*>(step)) + c;
  }
};

// Begins to copy a tile into rows of `pitch` elements, with one row left out after every `Run` of
// them. Wide: in 16-byte pieces; else one element at a time.
template <bool Wide, int Threads, int Steps, int Columns, int Run = Steps, class T>
__device__ __forceinline__ void copy_tile(const ScanTile& tile, T* to, int pitch) {
  constexpr int size = static_cast<int>(sizeof(T)), width = Wide ? 16 / size : 1;
  constexpr int pieces = Columns / width;
#pragma unroll(Wide ? 2 : 1)
  for (int i = 0; i < Steps * pieces; i += Threads) {
    const int piece = i + static_cast<int>(threadIdx.x) % Threads;
    if (Steps * pieces % Threads != 0 && piece >= Steps * pieces) break;
    const int t = piece / pieces, c = piece % pieces * width;
    const bool there = t < tile.steps && c < tile.columns;
    T* at = to + (t + t / Run) * pitch + c;
    const T* from = there ? tile.at<T>(t, c) : reinterpret_cast<const T*>(tile.data);
    if constexpr (Wide) {
      copy_16_bytes(at, from, there ? min(tile.columns - c, width) * size : 0);
    } else {
      *at = there ? *from : from_float<T>(0);
    }
  }
}

// The same for B and C, in pieces of 1 << bits bytes; rows have no gaps, and 2^n bytes.
template <int Threads, int Steps, int Columns, class T>
__device__ __forceinline__ void copy_states_tile(const ScanTile& tile, T* to, int bits) {
  if (bits == 4) return copy_tile<true, Threads, Steps, Columns>(tile, to, Columns);
  constexpr int row = Columns * static_cast<int>(sizeof(T));
  const int columns = tile.columns * static_cast<int>(sizeof(T));
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) % Threads << bits; at < Steps * row;
       at += Threads << bits) {
    const int t = at / row, c = at % row;
    const bool there = t < tile.steps && c < columns;
    const char* from = there ? tile.at<char>(t, c) : tile.data;
    char* place = reinterpret_cast<char*>(to) + at;
    const int valid = there ? min(columns - c, 1 << bits) : 0;
    if (bits == 3) {
      copy_bytes<8>(place, from, valid);
    } else if (bits == 2) {
      copy_bytes<4>(place, from, valid);
    } else {
      *reinterpret_cast<std::uint16_t*>(place) =
          there ? *reinterpret_cast<const std::uint16_t*>(from) : std::uint16_t{0};
    }
  }
}

// The way back, of what exists.
template <bool Wide, int Threads, int Steps, int Columns, int Run = Steps, class T>
__device__ __forceinline__ void store_tile(const T* from, int pitch, const ScanTile& tile) {
  constexpr int size = static_cast<int>(sizeof(T)), width = Wide ? 16 / size : 1;
  constexpr int pieces = Columns / width;
#pragma unroll(Wide ? 2 : 1)
  for (int i = 0; i < Steps * pieces; i += Threads) {
    const int piece = i + static_cast<int>(threadIdx.x) % Threads;
    if (Steps * pieces % Threads != 0 && piece >= Steps * pieces) break;
    const int t = piece / pieces, c = piece % pieces * width;
    if (t >= tile.steps || c >= tile.columns) continue;
    const auto values = load_vec<width>(from + (t + t / Run) * pitch + c);
    if (c + width <= tile.columns) {
      store_vec(tile.at<T>(t, c), values);
    } else {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        if (c + k < tile.columns) *tile.at<T>(t, c + k) = values.at[k];
      }
    }
  }
}

}  // namespace mamba::cuda
