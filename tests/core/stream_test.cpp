#include <thread>

#include <mamba/ops.hpp>

#include "core/allocations.hpp"
#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::devices;
using testing::expect_error;
using testing::Random;

TEST(Stream, DeviceAndThreads) {
  EXPECT_EQ(Stream(Device::cpu(), 3).threads(), 3);
  EXPECT_GE(Stream().threads(), 1);
  EXPECT_TRUE(Stream().device().is_cpu());
  EXPECT_EQ(Stream().cuda_stream(), nullptr);
  expect_error<ArgumentError>("Stream: threads: expected at least 0, got -1",
                              [] { Stream(Device::cpu(), -1); });
  expect_error<ArgumentError>("Stream::borrow: device: expected a CUDA device, got cpu",
                              [] { Stream::borrow(Device::cpu(), nullptr); });
}

TEST(Stream, TheDefaultStreamBelongsToItsThread) {
  for (const Device device : devices()) {
    Stream* mine = &default_stream(device);
    EXPECT_EQ(mine, &default_stream(device));
    Stream* other = nullptr;
    std::thread([&] { other = &default_stream(device); }).join();
    EXPECT_NE(mine, other);
    EXPECT_EQ(mine->device(), device);
  }
  EXPECT_EQ(&default_stream(), &default_stream(Device::cpu()));
}

TEST_EACH(Scratch, AlignedAndDisjoint, Device device) {
  Stream stream(device);
  Scratch scratch(stream);
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> taken;
  for (const std::int64_t size : {1, 100, 0, 300000, 7, 5000000, 64}) {
    const TensorView view = scratch.take({size, 3}, DType::bf16);
    EXPECT_EQ(view.shape(), (Shape{size, 3}));
    EXPECT_EQ(view.device(), device);
    const auto first = reinterpret_cast<std::uintptr_t>(view.data());
    EXPECT_EQ(first % 256, 0u);
    const auto last = first + static_cast<std::uintptr_t>(view.count() * 2);
    for (const auto& [from, to] : taken) EXPECT_TRUE(last <= from || first >= to);
    taken.push_back({first, last});
  }
}

TEST_EACH(Scratch, ScopesNestAndGiveBack, Device device) {
  Stream stream(device);
  Scratch outer(stream);
  const void* first = outer.take({10}, DType::f32).data();
  const void* inside = nullptr;
  {
    Scratch inner(stream);
    inside = inner.take({10}, DType::f32).data();
    EXPECT_NE(inside, first);
    Scratch deeper(stream);
    EXPECT_NE(deeper.take({10}, DType::f32).data(), inside);
  }
  EXPECT_EQ(outer.take({10}, DType::f32).data(), inside);
}

TEST_EACH(Scratch, TheSameCallsGiveTheSameAddressesAndAllocateNothing, Device device) {
  Stream stream(device);
  std::vector<const void*> first;
  for (int round = 0; round < 3; ++round) {
    std::vector<const void*> addresses;
    addresses.reserve(8);
    const long before = testing::allocations_here();
    {
      Scratch scratch(stream);
      for (const std::int64_t size : {10, 400000, 1, 2000000}) {
        addresses.push_back(scratch.take({size}, DType::f32).data());
        Scratch inner(stream);
        addresses.push_back(inner.take({size, 2}, DType::f32).data());
      }
    }
    if (round == 0) {
      first = addresses;
    } else {
      EXPECT_EQ(addresses, first);
      EXPECT_EQ(testing::allocations_here(), before);
    }
  }
}

// What the dense operations promise: nothing is allocated after the first call.
TEST_EACH(Scratch, OperationsAllocateOnlyOnce, DType dtype) {
  Random random(1);
  for (const std::int64_t rows : {1, 40}) {
    Stream stream(Device::cpu(), 2);
    const Tensor x = random.normal_tensor({rows, 300}, dtype);
    const Tensor weight = random.normal_tensor({500, 300}, dtype);
    const Tensor ids = Tensor::zeros({rows, 1}, DType::i32);
    Tensor y({rows, 500}, dtype), logits({rows, 500}, DType::f32), chosen({rows}, DType::i32);
    Tensor seed = Tensor::zeros({rows, 2}, DType::i32), draws = Tensor::zeros({rows}, DType::i32);
    Tensor embedded({rows, 1, 300}, dtype);
    Matmul matmul;
    matmul.x = x;
    matmul.weight = weight;
    matmul.y = logits;
    AddRmsNorm norm;
    norm.x = y;
    norm.residual = logits;
    norm.y = y;
    Embedding embedding;
    embedding.ids = ids;
    embedding.table = weight;
    embedding.y = embedded;
    Sample sample;
    sample.logits = logits;
    sample.seed = seed;
    sample.draws = draws;
    sample.ids = chosen;
    sample.temperature = 1;
    sample.top_k = 50;
    sample.top_p = 0.9f;
    zero(y, stream);
    const auto all = [&] {
      run(embedding, stream);
      run(matmul, stream);
      run(norm, stream);
      run(sample, stream);
    };
    all();
    EXPECT_EQ(testing::allocations_of(all), 0) << name_of(dtype) << ", rows " << rows;
  }
}

}  // namespace
}  // namespace mamba
