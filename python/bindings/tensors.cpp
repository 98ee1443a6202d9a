#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <tuple>
#include <utility>

#include "bind.hpp"

namespace mamba::python {

namespace {

const DLPackExchangeAPI* exchange_api_of(nb::handle type) {
  if (!nb::hasattr(type, "__dlpack_c_exchange_api__")) return nullptr;
  const nb::object capsule = type.attr("__dlpack_c_exchange_api__");
  constexpr const char* name = "dlpack_exchange_api";
  if (PyCapsule_IsValid(capsule.ptr(), name) == 0) return nullptr;
  const auto* api =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), name));
  while (api != nullptr && api->version.major != 1) api = api->previous;
  return api != nullptr && api->see != nullptr ? api : nullptr;
}

// The same, asked once of the types that calls have in turn: tensors, parameters, arrays. (With the
// interpreter's lock held. A type is kept, so that no other takes its address.)
const DLPackExchangeAPI* exchange_api(nb::handle type) {
  struct Known {
    PyObject* type = nullptr;
    const DLPackExchangeAPI* api = nullptr;
  };
  static std::array<Known, 4> known;
  static std::size_t next = 0;
  for (const Known& one : known) {
    if (one.type == type.ptr()) return one.api;
  }
  const Known asked{type.inc_ref().ptr(), exchange_api_of(type)};
  Known& place = known[next++ % known.size()];
  Py_XDECREF(place.type);
  place = asked;
  return asked.api;
}

std::string dtype_name(std::uint8_t code, std::uint8_t bits) {
  static constexpr const char* kinds[] = {"int",    "uint",    "float", "object",
                                          "bfloat", "complex", "bool"};
  const std::string kind = code < 7 ? kinds[code] : "dtype " + std::to_string(code) + " of ";
  return code == 6 ? kind : kind + std::to_string(bits);
}

std::string list(const std::int64_t* sizes, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

std::string type_of(nb::handle object) { return nb::cast<std::string>(nb::str(object.type())); }

bool is_dense(const DLTensor& array) {
  if (array.strides == nullptr) return true;
  std::int64_t dense = 1;
  for (int i = array.ndim - 1; i >= 0; --i) {
    if (array.shape[i] == 0) return true;
    if (array.shape[i] != 1 && array.strides[i] != dense) return false;
    dense *= array.shape[i];
  }
  return true;
}

nb::object dense_copy(nb::handle array) {
  if (nb::hasattr(array, "contiguous")) return array.attr("contiguous")();
  return nb::module_::import_("numpy").attr("ascontiguousarray")(array);
}

}  // namespace

Operand::Operand(const char* where, const char* name, nb::handle array, Access access)
    : where_(where), name_(name), access_(access) {
  if (!array.is_none()) see(array);
}

void Operand::see(nb::handle array) {
  DLTensor seen{};
  std::int64_t shape[Shape::max_rank + 1], strides[Shape::max_rank + 1];
  api_ = exchange_api(array.type());
  if (api_ != nullptr) {
    if (api_->see(array.ptr(), &seen) != 0) throw nb::python_error();
  } else {
    nb::object object = nb::borrow(array);
    // Older PyTorch shows no tensor that wants a gradient, though nothing here would pass it by.
    if (nb::hasattr(array, "requires_grad")) object = array.attr("detach")();
    if (!nb::try_cast(object, imported_)) {
      throw ArgumentError(where_, name_, "an array of f32, bf16, f16 or i32 (DLPack or buffer)",
                          type_of(array));
    }
    if (access_ == Access::write && !nb::isinstance<nb::ndarray<>>(object)) {
      throw ArgumentError(where_, name_, "an array that can be written", "a read-only one");
    }
    const auto rank = std::min<std::size_t>(imported_.ndim(), Shape::max_rank + 1);
    for (std::size_t i = 0; i < rank; ++i) {
      shape[i] = static_cast<std::int64_t>(imported_.shape(i));
      strides[i] = imported_.stride(i);
    }
    seen.data = const_cast<void*>(imported_.data());
    seen.device = {imported_.device_type(), imported_.device_id()};
    seen.ndim = static_cast<std::int32_t>(rank);
    seen.dtype = {imported_.dtype().code, imported_.dtype().bits, imported_.dtype().lanes};
    seen.shape = shape;
    seen.strides = strides;
  }
  if (access_ == Access::dense && !is_dense(seen)) {
    copy_ = dense_copy(array);
    return see(copy_);
  }
  take(seen);
}

void Operand::take(const DLTensor& array) {
  const auto fail = [&](const std::string& expected, const std::string& got) {
    throw ArgumentError(where_, name_, expected, got);
  };
  DType dtype = DType::f32;
  const auto [code, bits, lanes] = array.dtype;
  if (code == 2 && bits == 32 && lanes == 1) {
    dtype = DType::f32;
  } else if (code == 4 && bits == 16 && lanes == 1) {
    dtype = DType::bf16;
  } else if (code == 2 && bits == 16 && lanes == 1) {
    dtype = DType::f16;
  } else if (code == 0 && bits == 32 && lanes == 1) {
    dtype = DType::i32;
  } else {
    fail("f32, bf16, f16 or i32", dtype_name(code, bits));
  }
  if (array.device.type < 1 || array.device.type > 3) {
    fail("an array of the CPU or CUDA", "DLPack device " + std::to_string(array.device.type));
  }
  const Device device = array.device.type == 2 ? Device::cuda(array.device.id) : Device::cpu();
  const int rank = array.ndim;
  const std::int64_t* n = array.shape;
  if (rank < 1 || rank > Shape::max_rank) {
    fail("1 to 4 dimensions", std::to_string(rank));
  }
  const void* data = static_cast<const char*>(array.data) + array.byte_offset;
  const Shape shape = rank == 1   ? Shape{n[0]}
                      : rank == 2 ? Shape{n[0], n[1]}
                      : rank == 3 ? Shape{n[0], n[1], n[2]}
                                  : Shape{n[0], n[1], n[2], n[3]};
  view_ = ConstTensorView(data, shape, dtype, device);
  if (array.strides == nullptr || view_.count() == 0) return;
  // What the two pitches cannot say is dense. A dimension of one element has no stride to speak of.
  const std::int64_t* stride = array.strides;
  std::int64_t dense = 1;
  const int pitched = rank == 1 ? 0 : rank == 2 ? 1 : 2;
  for (int i = rank - 1; i >= pitched; --i) {
    if (n[i] != 1 && stride[i] != dense) {
      fail("contiguous channels (the last dimension, stride 1)",
           "shape " + list(n, rank) + " with strides " + list(stride, rank));
    }
    dense *= n[i];
  }
  if (rank == 1) return;
  Pitches pitches{view_.row_pitch(), view_.step_pitch()};
  if (n[0] > 1) pitches.row = stride[0];
  if (rank > 2 && n[1] > 1) pitches.step = stride[1];
  if (pitches.row < 0 || pitches.step < 0) {
    fail("strides of at least 0", list(stride, rank));
  }
  view_ = ConstTensorView(data, shape, pitches, dtype, device);
}

TensorView Operand::writable() const {
  if (!view_) return {};
  if (access_ != Access::write) throw ArgumentError(where_, name_, "an output", "an input");
  const Pitches pitches{view_.row_pitch(), view_.step_pitch()};
  return {const_cast<void*>(view_.data()), view_.shape(), pitches, view_.dtype(), view_.device()};
}

std::optional<void*> Operand::current_stream() const {
  if (api_ == nullptr || api_->current_stream == nullptr || !view_.device().is_cuda()) return {};
  void* stream = nullptr;
  if (api_->current_stream(2, view_.device().index(), &stream) != 0) throw nb::python_error();
  return stream;
}

// ---- tensors as arrays ------------------------------------------------------------------------

namespace {

nb::dlpack::dtype dlpack_dtype(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  const std::uint8_t code = dtype == DType::i32 ? 0 : dtype == DType::bf16 ? 4 : 2;
  return {code, bits, 1};
}

}  // namespace

nb::object to_array(const TensorView& view, nb::handle owner, Framework framework) {
  if (!view) return nb::none();
  const auto fail = [](const char* expected, const char* got) {
    throw ArgumentError("to_array", "tensor", expected, got);
  };
  std::size_t shape[Shape::max_rank];
  std::int64_t strides[Shape::max_rank];
  std::int64_t dense = 1;
  for (int i = view.rank() - 1; i >= 0; --i) {
    shape[i] = static_cast<std::size_t>(view.dim(i));
    strides[i] = dense;
    dense *= view.dim(i);
  }
  if (view.rank() > 1) strides[0] = view.row_pitch();
  if (view.rank() > 2) strides[1] = view.step_pitch();
  // An empty tensor has no memory, and an array wants an address.
  static float nothing = 0;
  void* data = view.data() == nullptr ? &nothing : view.data();
  const auto rank = static_cast<std::size_t>(view.rank());
  const int type = view.device().is_cuda() ? 2 : 1;
  if (framework == Framework::torch) {
    return nb::cast(nb::ndarray<nb::pytorch>(data, rank, shape, owner, strides,
                                             dlpack_dtype(view.dtype()), type,
                                             view.device().index()));
  }
  if (framework == Framework::dlpack) {
    return nb::cast(nb::ndarray<nb::array_api>(data, rank, shape, owner, strides,
                                               dlpack_dtype(view.dtype()), type,
                                               view.device().index()));
  }
  if (view.dtype() == DType::bf16) fail("f32, f16 or i32, which NumPy has", "bf16");
  if (view.device().is_cuda()) fail("cpu, where NumPy's arrays are", "cuda");
  return nb::cast(nb::ndarray<nb::numpy>(data, rank, shape, owner, strides,
                                         dlpack_dtype(view.dtype()), type, 0));
}

nb::object to_array(Tensor tensor, Framework framework) {
  if (!tensor) return nb::none();
  auto* kept = new Tensor(std::move(tensor));
  const nb::capsule owner(kept, [](void* memory) noexcept { delete static_cast<Tensor*>(memory); });
  return to_array(kept->view(), owner, framework);
}

Tensor to_tensor(const char* where, const char* name, nb::handle array) {
  if (array.is_none()) return {};
  Operand operand(where, name, array, Access::write);
  const TensorView view = operand.writable();
  if (!view.is_dense()) throw ArgumentError(where, name, "a dense array", "a strided one");
  nb::object owner = nb::borrow(array);
  Tensor tensor =
      Tensor::adopt(view.data(), view.shape(), view.dtype(), view.device(), [object = owner.ptr()] {
        if (Py_IsInitialized() == 0) return;  // the process ends
        const nb::gil_scoped_acquire gil;
        Py_DECREF(object);
      });
  owner.release();
  return tensor;
}

// ---- devices, dtypes, streams -----------------------------------------------------------------

Device device_of(nb::handle device) {
  return Device::parse(nb::cast<std::string>(nb::str(device)));
}

DType dtype_of(nb::handle dtype) {
  // numpy.float32 is a class, all others print as their name.
  std::string text = nb::cast<std::string>(
      nb::isinstance<nb::type_object>(dtype) ? nb::str(dtype.attr("__name__")) : nb::str(dtype));
  if (text.rfind("torch.", 0) == 0) text.erase(0, 6);
  static const std::map<std::string, DType, std::less<>> names = {
      {"f32", DType::f32},     {"float32", DType::f32},   {"float", DType::f32},
      {"bf16", DType::bf16},   {"bfloat16", DType::bf16}, {"f16", DType::f16},
      {"float16", DType::f16}, {"half", DType::f16},      {"i32", DType::i32},
      {"int32", DType::i32}};
  const auto found = names.find(text);
  if (found == names.end()) {
    throw ArgumentError("dtype", "dtype", "float32, bfloat16, float16 or int32", text);
  }
  return found->second;
}

Stream& stream_for(Device device, void* cuda_stream, int threads) {
  using Key = std::tuple<int, void*, int>;
  thread_local std::map<Key, Stream> streams;
  const Key key = device.is_cpu() ? Key{-1, nullptr, threads} : Key{device.index(), cuda_stream, 0};
  const auto found = streams.find(key);
  if (found != streams.end()) return found->second;
  Stream made = device.is_cpu() ? Stream(device, threads) : Stream::borrow(device, cuda_stream);
  return streams.emplace(key, std::move(made)).first->second;
}

void bind_tensors(nb::module_& m) {
  m.def("cuda_device_count", &cuda_device_count,
        "How many CUDA devices the library can use: 0 in a build without CUDA.");
  m.def("cpu_kernels", &cpu_kernels, "The kernels that operations on the CPU take here.");
}

}  // namespace mamba::python
