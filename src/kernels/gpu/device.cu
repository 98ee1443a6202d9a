// Which devices there are, what is asked of a device and of a kernel once, and how a device is made
// current.
#include <cuda.h>
#include <dlfcn.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/tensor_map.cuh"

namespace mamba::cuda {

namespace {

// The few calls of the driver that the runtime has no word for. The runtime has loaded it before
// anything here is called; linking to it would keep programs from starting where there is none.
struct Driver {
  decltype(&cuCtxGetCurrent) current = nullptr;
  decltype(&cuCtxPushCurrent) push = nullptr;
  decltype(&cuCtxPopCurrent) pop = nullptr;
  decltype(&cuDeviceGet) device = nullptr;
  decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&cuDevicePrimaryCtxGetState) state = nullptr;
  decltype(&cuTensorMapEncodeTiled) tensor_map = nullptr;  // absent before 12.0
  bool complete = false;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_LAZY);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    complete = find(current, "cuCtxGetCurrent") && find(push, "cuCtxPushCurrent_v2") &&
               find(pop, "cuCtxPopCurrent_v2") && find(device, "cuDeviceGet") &&
               find(retain, "cuDevicePrimaryCtxRetain") &&
               find(state, "cuDevicePrimaryCtxGetState");
    find(tensor_map, "cuTensorMapEncodeTiled");
  }
};

const Driver& driver() {
  static const Driver known;
  return known;
}

struct Known {
  std::once_flag asked, retained;
  Limits limits;
  CUcontext context = nullptr;  // the primary one; kept as long as the process
};

const Limits& limits_of(Device device, const char* where) {
  Known& one = kept_for<Known>(device, where);
  std::call_once(one.asked, [&] {
    const auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device.index()), where);
      return value;
    };
    one.limits.shared_memory = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    one.limits.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
    one.limits.capability =
        10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
    one.limits.cooperative = ask(cudaDevAttrCooperativeLaunch) != 0;
  });
  return one.limits;
}

thread_local const LimitedDevices* innermost = nullptr;

// ---- kernels ------------------------------------------------------------------------------------

struct Kernel {
  int static_shared = 0;  // bytes
  int capability = 0;     // that its code was compiled for
  bool raised = false;    // it may have all of the device's shared memory
};

struct KernelOnDevice {
  const void* kernel;
  int device;
  bool operator==(const KernelOnDevice& other) const {
    return kernel == other.kernel && device == other.device;
  }
};
struct KernelHash {
  std::size_t operator()(const KernelOnDevice& key) const {
    return std::hash<const void*>()(key.kernel) + static_cast<std::size_t>(key.device);
  }
};

// Each thread asks for itself, so that a launch takes no lock; the answers, and what is set, are
// the same for all.
Kernel& known(const void* kernel, Device device, const char* where) {
  thread_local std::unordered_map<KernelOnDevice, Kernel, KernelHash> all;
  const auto [place, is_new] = all.try_emplace({kernel, device.index()});
  if (!is_new) return place->second;
  const AllocationsInCapture allowed;  // the code may be loaded
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status != cudaSuccess) all.erase(place);
  check(status, where);
  place->second.static_shared = static_cast<int>(attributes.sharedSizeBytes);
  // What `#if __CUDA_ARCH__` saw: machine code made of older PTX is newer than what it can do.
  place->second.capability = std::min(attributes.ptxVersion, attributes.binaryVersion);
  return place->second;
}

}  // namespace

// ---- devices ------------------------------------------------------------------------------------

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {  // no driver: none, and no error left behind
    cudaGetLastError();
    return 0;
  }
  return count;
}

void check_present(const char* where, Device device) {
  const int count = device_count();
  if (device.index() < count) return;
  throw DeviceError(where, "device",
                    count == 0 ? "cpu (no CUDA device or no driver on this machine)"
                               : "one of " + std::to_string(count) + " CUDA devices",
                    device.name());
}

LimitedDevices::LimitedDevices(const Limits& most) : most_(most), outer_(innermost) {
  innermost = this;
}
LimitedDevices::~LimitedDevices() { innermost = outer_; }

Limits limits(Device device, const char* where) {
  Limits found = limits_of(device, where);
  for (const LimitedDevices* by = innermost; by != nullptr; by = by->outer_) {
    found.shared_memory = std::min(found.shared_memory, by->most_.shared_memory);
    found.multiprocessors = std::min(found.multiprocessors, by->most_.multiprocessors);
    found.capability = std::min(found.capability, by->most_.capability);
    found.cooperative = found.cooperative && by->most_.cooperative;
  }
  return found;
}

namespace {

bool has_context() {
  CUcontext current = nullptr;
  return driver().complete && driver().current(&current) == CUDA_SUCCESS && current != nullptr;
}

// Whether its primary context exists.
bool is_active(Device device) {
  CUdevice handle = 0;
  unsigned flags = 0;
  int active = 0;
  return driver().complete && driver().device(&handle, device.index()) == CUDA_SUCCESS &&
         driver().state(handle, &flags, &active) == CUDA_SUCCESS && active != 0;
}

Device first_in_use() {
  for (int index = 0, count = device_count(); index < count; ++index) {
    if (is_active(Device::cuda(index))) return Device::cuda(index);
  }
  return Device::cuda(0);
}

template <class Enter>
void without_errors(Enter enter) noexcept {
  try {
    enter();
  } catch (const std::exception&) {
    cudaGetLastError();
  }
}

}  // namespace

OnDevice::OnDevice(Device device, std::nothrow_t) noexcept {
  int current = 0;
  if (cudaGetDevice(&current) == cudaSuccess && current == device.index()) return;
  without_errors([&] { enter(device, ""); });
}

OnDevice::OnDevice(const char* where) {
  if (!has_context()) enter(first_in_use(), where);
}

OnDevice::OnDevice(std::nothrow_t) noexcept {
  if (!has_context()) without_errors([&] { enter(first_in_use(), ""); });
}

void OnDevice::enter(Device device, const char* where) {
  Known& one = kept_for<Known>(device, where);
  std::call_once(one.retained, [&] {
    // Another thread may be recording where there is a context already.
    if (!is_active(device)) check(cudaInitDevice(device.index(), 0, 0), where);  // not made current
    CUdevice handle = 0;
    if (!driver().complete || driver().device(&handle, device.index()) != CUDA_SUCCESS ||
        driver().retain(&one.context, handle) != CUDA_SUCCESS) {
      throw DeviceError(where, "device", "a context on " + device.name(), "none from the driver");
    }
  });
  if (driver().push(one.context) != CUDA_SUCCESS) {
    throw DeviceError(where, "device", "a context on " + device.name(), "one that is lost");
  }
  entered_ = true;
}

void OnDevice::leave() noexcept {
  CUcontext left = nullptr;
  driver().pop(&left);
}

// ---- what a kernel may ask for ------------------------------------------------------------------

int capability_of(const void* kernel, Device device, const char* where) {
  return std::min(known(kernel, device, where).capability, limits(device, where).capability);
}

int allow_shared(const void* kernel, std::size_t dynamic, Device device, const char* where) {
  constexpr std::int64_t unasked = 48 << 10;
  Kernel& one = known(kernel, device, where);
  const Limits most = limits(device, where);
  const std::int64_t bytes = one.static_shared + static_cast<std::int64_t>(dynamic);
  if (bytes > most.shared_memory) {
    throw DeviceError(
        where, "shared memory",
        "at most " + std::to_string(most.shared_memory) + " bytes of a block on " + device.name(),
        std::to_string(bytes));
  }
  if (bytes > unasked && !one.raised) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               limits_of(device, where).shared_memory - one.static_shared),
          where);
    one.raised = true;
  }
  return std::min(one.capability, most.capability);
}

CUtensorMap tensor_map(const ConstTensorView& view, int columns, int rows, const char* where) {
  const std::int64_t batch = view.dim(0), time = view.dim(1);
  const auto bytes = [](std::int64_t pitch) { return static_cast<cuuint64_t>(2 * pitch); };
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(view.dim(2)), static_cast<cuuint64_t>(time),
                              static_cast<cuuint64_t>(batch)};
  // Of a lone row or step the pitch means nothing, and may be any number.
  const cuuint64_t step = bytes(time > 1 ? view.step_pitch() : view.dim(2));
  const cuuint64_t pitches[2] = {step, batch > 1 ? bytes(view.row_pitch()) : step};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(columns), static_cast<cuuint32_t>(rows), 1};
  const cuuint32_t each[3] = {1, 1, 1};
  const CUtensorMapSwizzle swizzle =
      columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_32B;
  CUtensorMap map{};
  const auto make = driver().tensor_map;
  const CUresult status =
      make == nullptr
          ? CUDA_ERROR_NOT_SUPPORTED
          : make(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(view.data()), dims,
                 pitches, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(where, "driver", "a tensor map", "error " + std::to_string(status));
  }
  return map;
}

}  // namespace mamba::cuda
