// Training on several GPUs of one machine: a thread for each, every one with its own copy of the
// model and its own rows of the batch, and the sums over NCCL that keep the copies the same. In the
// target mamba::data_parallel, which is built where NCCL is.
//
//   DataParallel group({Device::cuda(0), Device::cuda(1)});
//   group.run([&](Rank& rank) {
//     Stream stream(rank.device());
//     LanguageModel model = LanguageModel::random(config, seed, DType::bf16, rank.device());
//     LanguageModelWeights gradients = zero_gradients(model.config(), rank.device());
//     AdamW optimizer(parameters(model, gradients));
//     ...                                            // forward and loss of this rank's rows
//     model.backward(tape, dlogits, nullptr, gradients, stream);
//     rank.all_reduce(tensors(gradients, model.config()), stream);
//     optimizer.step(rate, stream);                  // the same on every rank
//   });
//
// Sums are sums and not means: let the loss be divided by what counts in the whole batch, and the
// sum of the gradients is that of the joined batch.
#pragma once

#include <functional>
#include <vector>

#include <mamba/device.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// One member of the group, used by its own thread. Every rank makes the same calls in the same
// order; where they differ, each of them gets an ArgumentError. Each call waits on the host until
// all ranks have made it, so that none is left waiting on its GPU for one that never comes, and
// none frees memory while another waits there for it; no call waits for a GPU. If a rank fails,
// every call of the others, under way or later, is a DeviceError that says which and why.
class Rank {
 public:
  int index() const { return index_; }
  int count() const { return count_; }
  Device device() const { return device_; }

  // Each tensor becomes its sum over all ranks, the same bits on each of them. Dense f32 of this
  // rank's device, the same shapes on every rank (ArgumentError). Ordered on `stream`, like any
  // operation; small tensors go together. The same bits run to run: reduction in the
  // NVLink switches (NVLS), which adds in the order of arrival, is turned off.
  void all_reduce(const std::vector<TensorView>& tensors, Stream& stream);
  // Each tensor becomes that of rank 0. Dense, of any dtype.
  void broadcast(const std::vector<TensorView>& tensors, Stream& stream);

  // The sum over all ranks of a number on the host, in their order.
  double all_reduce(double value);
  // Nothing but the wait.
  void barrier();

 private:
  friend class DataParallel;
  struct Group;
  struct Call;
  Rank(Group& group, int index, int count, Device device)
      : group_(group), index_(index), count_(count), device_(device) {}
  const std::vector<Call>& meet(Call call);
  void run_collective(const char* name, const std::vector<TensorView>& tensors,
                      const Stream& stream, const std::function<void(const TensorView&)>& call);

  Group& group_;
  int index_, count_;
  Device device_;
  unsigned meetings_ = 0;
};

class DataParallel {
 public:
  // One rank for each device, in this order. CUDA devices, at least one, none twice
  // (ArgumentError); one that is not there is a DeviceError.
  explicit DataParallel(std::vector<Device> devices);

  const std::vector<Device>& devices() const { return devices_; }

  // work(rank) on a thread for each rank; returns when all have. If one throws, or NCCL fails, the
  // waits of all others end, those on their GPUs too, whose results then mean nothing; when every
  // thread is back the first exception is thrown. The next run starts afresh.
  void run(const std::function<void(Rank&)>& work) const;

 private:
  std::vector<Device> devices_;
};

}  // namespace mamba
