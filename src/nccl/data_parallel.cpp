#include <mamba/data_parallel.hpp>

#include <cuda_runtime.h>

#include <array>
#include <chrono>
#include <deque>
#include <set>
#include <string>
#include <thread>

#include <mamba/check.hpp>

#include "nccl/communicator.hpp"

namespace mamba {

// What a rank brings to a meeting.
struct Rank::Call {
  std::string name;
  std::vector<TensorView> tensors;
  double number = 0;
};

// What the threads of one run share.
struct Rank::Group {
  detail::Meeting meeting;
  std::deque<nccl::Communicator> communicators;
  // Of every rank, for even and odd meetings: nobody is more than one ahead of another, so what was
  // brought to a meeting can be read until the next.
  std::array<std::vector<Call>, 2> calls;

  explicit Group(int count) : meeting(count) {
    for (std::vector<Call>& each : calls) each.resize(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) communicators.emplace_back(meeting, i);
  }
  nccl::Communicator& communicator(int rank) {
    return communicators[static_cast<std::size_t>(rank)];
  }
};

// ---- a rank -------------------------------------------------------------------------------------

namespace {

cudaStream_t handle(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.cuda_stream());
}

std::string described(const std::vector<TensorView>& tensors) {
  std::int64_t elements = 0;
  for (const TensorView& tensor : tensors) elements += tensor.count();
  return std::to_string(tensors.size()) + " tensors of " + std::to_string(elements) + " elements";
}

bool alike(const std::vector<TensorView>& a, const std::vector<TensorView>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].shape() != b[i].shape() || a[i].dtype() != b[i].dtype()) return false;
  }
  return true;
}

}  // namespace

// Every rank compares with every other, so that all of them refuse what one of them would.
const std::vector<Rank::Call>& Rank::meet(Call call) {
  std::vector<Call>& calls = group_.calls[meetings_++ % 2];
  const Call& ours = calls[static_cast<std::size_t>(index_)] = std::move(call);
  group_.meeting.meet(index_);
  for (int other = 0; other < count_; ++other) {
    const Call& theirs = calls[static_cast<std::size_t>(other)];
    const std::string of_them = " of rank " + std::to_string(other);
    if (ours.name != theirs.name) {
      throw ArgumentError("Rank", "call", theirs.name + ", as that" + of_them, ours.name);
    }
    if (!alike(ours.tensors, theirs.tensors)) {
      throw ArgumentError("Rank::" + ours.name, "tensors",
                          "those" + of_them + ", " + described(theirs.tensors),
                          described(ours.tensors));
    }
  }
  return calls;
}

void Rank::run_collective(const char* name, const std::vector<TensorView>& tensors,
                          const Stream& stream,
                          const std::function<void(const TensorView&)>& call) {
  const std::string where = std::string("Rank::") + name;
  check::stream(where.c_str(), stream, device_);
  for (const TensorView& tensor : tensors) {
    check::device(where.c_str(), "tensors", tensor, device_);
    if (!tensor.is_dense()) throw ArgumentError(where, "tensors", "dense ones", "a strided view");
  }
  meet({name, tensors});
  group_.communicator(index_).queue([&] {
    for (const TensorView& tensor : tensors) {
      if (tensor.count() > 0) call(tensor);
    }
  });
  meet({std::string(name) + " that is queued", {}});
}

void Rank::all_reduce(const std::vector<TensorView>& tensors, Stream& stream) {
  for (const TensorView& tensor : tensors) {
    check::dtype("Rank::all_reduce", "tensors", tensor, DType::f32);
  }
  run_collective("all_reduce", tensors, stream, [&](const TensorView& tensor) {
    group_.communicator(index_).sum(tensor.data<float>(), tensor.count(), handle(stream));
  });
}

void Rank::broadcast(const std::vector<TensorView>& tensors, Stream& stream) {
  run_collective("broadcast", tensors, stream, [&](const TensorView& tensor) {
    group_.communicator(index_).broadcast(tensor.data(), tensor.count() * size_of(tensor.dtype()),
                                          handle(stream));
  });
}

double Rank::all_reduce(double value) {
  double sum = 0;
  for (const Call& call : meet({"all_reduce of a number", {}, value})) sum += call.number;
  return sum;
}

void Rank::barrier() { meet({"barrier", {}}); }

// ---- the group ----------------------------------------------------------------------------------

DataParallel::DataParallel(std::vector<Device> devices) : devices_(std::move(devices)) {
  constexpr const char* where = "DataParallel";
  if (devices_.empty()) throw ArgumentError(where, "devices", "at least one", "none");
  std::set<int> seen;
  for (const Device device : devices_) {
    if (device.is_cpu()) throw ArgumentError(where, "devices", "CUDA devices", device.name());
    if (!seen.insert(device.index()).second) {
      throw ArgumentError(where, "devices", "every device once", device.name() + " twice");
    }
    const int present = cuda_device_count();
    if (device.index() >= present) {
      throw DeviceError(where, "devices", "some of " + std::to_string(present) + " CUDA devices",
                        device.name());
    }
  }
}

namespace {

// f(communicator) for all at once: one may have to wait for the others.
template <class F>
void at_once(std::deque<nccl::Communicator>& communicators, const F& f) {
  std::vector<std::thread> threads;
  for (nccl::Communicator& communicator : communicators) {
    threads.emplace_back([&] { f(communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

// f(), whose failure is one of the group. rank < 0: of none in particular.
template <class F>
void guarded(detail::Meeting& meeting, int rank, const F& f) {
  try {
    f();
  } catch (const std::exception& error) {
    meeting.fail(rank, std::current_exception(), error.what());
  } catch (...) {
    meeting.fail(rank, std::current_exception(), "an exception of unknown kind");
  }
}

void set_device(Device device) {
  const cudaError_t status = cudaSetDevice(device.index());
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError("DataParallel", "CUDA", "success", cudaGetErrorString(status),
                    static_cast<int>(status));
}

}  // namespace

void DataParallel::run(const std::function<void(Rank&)>& work) const {
  const auto count = static_cast<int>(devices_.size());
  ncclUniqueId id;
  nccl::check(ncclGetUniqueId(&id));
  Rank::Group group(count);
  detail::Meeting& meeting = group.meeting;
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      guarded(meeting, i, [&] {
        Rank rank(group, i, count, devices_[static_cast<std::size_t>(i)]);
        set_device(rank.device());
        group.communicator(i).join(id, count);
        work(rank);
      });
      meeting.leave(i);
    });
  }
  // A thread that waits for its GPU cannot look after itself: its communicator is aborted from
  // here.
  bool aborted = false;
  while (!meeting.all_left(std::chrono::milliseconds(10))) {
    for (nccl::Communicator& communicator : group.communicators) {
      const std::string error = communicator.error();
      if (error.empty()) continue;
      guarded(meeting, -1, [&] { throw DeviceError("DataParallel", "NCCL", "success", error); });
    }
    if (aborted || !meeting.failure()) continue;
    at_once(group.communicators, [](nccl::Communicator& one) { one.abort(); });
    aborted = true;
  }
  for (std::thread& thread : threads) thread.join();
  if (!meeting.failure()) {
    at_once(group.communicators,
            [&](nccl::Communicator& one) { guarded(meeting, -1, [&] { one.close(); }); });
  }
  at_once(group.communicators, [](nccl::Communicator& one) { one.abort(); });
  if (meeting.failure()) std::rethrow_exception(meeting.failure());
}

}  // namespace mamba
