// In a build with NCCL.
#include <mamba/data_parallel.hpp>

#include "ranks.hpp"

namespace {

class OverNccl : public Ranks {
 public:
  explicit OverNccl(mamba::Rank& rank) : rank_(rank) {}
  int index() const override { return rank_.index(); }
  int count() const override { return rank_.count(); }
  void all_reduce(const std::vector<mamba::TensorView>& tensors, mamba::Stream& stream) override {
    rank_.all_reduce(tensors, stream);
  }
  double all_reduce(double value) override { return rank_.all_reduce(value); }
  void barrier() override { rank_.barrier(); }

 private:
  mamba::Rank& rank_;
};

}  // namespace

void on_several(const std::vector<mamba::Device>& devices,
                const std::function<void(Ranks&)>& work) {
  mamba::DataParallel(devices).run([&](mamba::Rank& rank) {
    OverNccl ranks(rank);
    work(ranks);
  });
}
