// Of DLPack (https://dmlc.github.io/dlpack, version 1.3), the two structs through which a library
// lets others see its tensors without making a Python object for each.
#pragma once

#include <cstdint>

extern "C" {

struct DLTensor {
  void* data;
  struct {
    std::int32_t type;  // 1 CPU, 2 CUDA, 3 pinned host memory
    std::int32_t id;
  } device;
  std::int32_t ndim;
  struct {
    std::uint8_t code;  // 0 int, 2 float, 4 bfloat
    std::uint8_t bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: dense
  std::uint64_t byte_offset;
};

// In the capsule "dlpack_exchange_api" that a type has as __dlpack_c_exchange_api__.
struct DLPackExchangeAPI {
  struct {
    std::uint32_t major, minor;
  } version;
  const DLPackExchangeAPI* previous;
  void* allocate;
  void* export_managed;
  void* import_managed;
  // Both give 0, or another value with a Python exception set. The first may be absent.
  int (*see)(void* object, DLTensor* seen);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};
}
