// Several GPUs: sums, copies that stay the same, and failures that nobody waits for. A group of one
// needs one device, the others two or more.
#include <mamba/data_parallel.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <mamba/weights.hpp>

#include "model/slopes.hpp"
#include "model/training_run.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::expect_within;
using testing::Random;
using testing::relative_error;
using testing::values;

using Bits = std::vector<unsigned char>;

std::vector<Device> first_devices(int count) {
  std::vector<Device> list;
  for (int i = 0; i < count; ++i) list.push_back(Device::cuda(i));
  return list;
}

// f(group) for one device, for two, and for all there are.
template <class F>
void each_group(int smallest, F f) {
  const int present = static_cast<int>(testing::devices().size()) - 1;
  if (present < smallest) GTEST_SKIP() << "needs " << smallest << " CUDA devices";
  for (const int count : {1, 2, present}) {
    if (count < smallest) continue;
    SCOPED_TRACE(std::to_string(count) + " ranks");
    f(DataParallel(first_devices(count)));
    if (count == present) return;
  }
}

std::uint64_t seed_of(const Rank& rank) { return static_cast<std::uint64_t>(rank.index()) + 1; }

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list{{1}, {0}, {3}, {1000}, {7, 11, 13}, {(1 << 20) + 7}};
  return list;
}

std::vector<Tensor> tensors_of_rank(std::uint64_t seed, DType dtype = DType::f32) {
  Random random(seed);
  std::vector<Tensor> list;
  for (const Shape& shape : shapes()) list.push_back(random.normal_tensor(shape, dtype));
  return list;
}

std::vector<Tensor> moved(const std::vector<Tensor>& tensors, Device device) {
  std::vector<Tensor> list;
  for (const Tensor& tensor : tensors) list.push_back(tensor.to(device));
  return list;
}

std::vector<TensorView> views(std::vector<Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

// What each rank brought back.
template <class T>
class PerRank {
 public:
  explicit PerRank(const DataParallel& group) : values_(group.devices().size()) {}
  T& operator[](const Rank& rank) { return values_[static_cast<std::size_t>(rank.index())]; }
  T& operator[](std::size_t i) { return values_[i]; }
  std::size_t size() const { return values_.size(); }

 private:
  std::vector<T> values_;
};

std::vector<Bits> summed_bits(const DataParallel& group, std::size_t of_rank,
                              std::vector<Tensor>* result) {
  PerRank<std::vector<Tensor>> all(group);
  group.run([&](Rank& rank) {
    Stream stream(rank.device());
    std::vector<Tensor> ours = moved(tensors_of_rank(seed_of(rank)), rank.device());
    rank.all_reduce(views(ours), stream);
    stream.synchronize();
    all[rank] = moved(ours, Device::cpu());
  });
  std::vector<Bits> list;
  for (const Tensor& tensor : all[of_rank]) list.push_back(bits(tensor));
  if (result != nullptr) *result = std::move(all[of_rank]);
  return list;
}

TEST(DataParallel, ASumIsThatOfAllRanksTheSameBitsOnEachAndEveryTime) {
  each_group(1, [](const DataParallel& group) {
    std::vector<Tensor> sums;
    const std::vector<Bits> first = summed_bits(group, 0, &sums);
    for (std::size_t i = 0; i < group.devices().size(); ++i) {
      EXPECT_EQ(summed_bits(group, i, nullptr), first) << "rank " << i;
    }
    for (std::size_t t = 0; t < shapes().size(); ++t) {
      std::vector<testing::Bounded> expected(static_cast<std::size_t>(shapes()[t].count()));
      const auto count = static_cast<double>(group.devices().size());
      for (std::size_t r = 0; r < group.devices().size(); ++r) {
        const std::vector<double> one = values(tensors_of_rank(r + 1)[t]);
        for (std::size_t i = 0; i < one.size(); ++i) {
          expected[i].value += one[i];
          expected[i].bound += std::abs(one[i]) * count * testing::f32_roundoff;
        }
      }
      expect_within(sums[t], expected, "tensor " + std::to_string(t));
    }
  });
}

TEST(DataParallel, ABroadcastBringsEveryRankWhatRankZeroHas) {
  each_group(1, [](const DataParallel& group) {
    for (const DType dtype : testing::storage_dtypes()) {
      std::vector<Tensor> expected = tensors_of_rank(1, dtype);
      expected.push_back(Tensor::from<std::int32_t>({7, 8, 9}, {3}));
      PerRank<std::vector<Bits>> all(group);
      group.run([&](Rank& rank) {
        Stream stream(rank.device());
        std::vector<Tensor> ours = tensors_of_rank(seed_of(rank), dtype);
        const std::int32_t id = rank.index() == 0 ? 7 : -1;
        ours.push_back(Tensor::from<std::int32_t>({id, id + 1, id + 2}, {3}));
        ours = moved(ours, rank.device());
        rank.broadcast(views(ours), stream);
        stream.synchronize();
        for (const Tensor& tensor : ours) all[rank].push_back(bits(tensor.to(Device::cpu())));
      });
      for (std::size_t r = 0; r < all.size(); ++r) {
        ASSERT_EQ(all[r].size(), expected.size());
        for (std::size_t t = 0; t < expected.size(); ++t) {
          EXPECT_EQ(all[r][t], bits(expected[t])) << "rank " << r << ", tensor " << t;
        }
      }
    }
  });
}

TEST(DataParallel, NumbersAreAddedInTheOrderOfRanks) {
  each_group(1, [](const DataParallel& group) {
    PerRank<double> sums(group), counts(group);
    group.run([&](Rank& rank) {
      EXPECT_EQ(rank.device(), group.devices()[static_cast<std::size_t>(rank.index())]);
      for (int i = 0; i < 100; ++i) {
        sums[rank] = rank.all_reduce(0.1 * (rank.index() + 1) + i);
        counts[rank] = rank.all_reduce(1.0);
      }
      rank.barrier();
    });
    double expected = 0;
    for (std::size_t r = 0; r < sums.size(); ++r) expected += 0.1 * static_cast<double>(r + 1) + 99;
    for (std::size_t r = 0; r < sums.size(); ++r) {
      EXPECT_EQ(sums[r], expected);
      EXPECT_EQ(counts[r], static_cast<double>(sums.size()));
    }
  });
}

// ---- training -----------------------------------------------------------------------------------

constexpr std::int64_t batch = 4, time_steps = 24, vocab = 16;

struct Data {
  Tensor ids, targets, reset;
};

Data data(std::int64_t step) {
  Random random(static_cast<std::uint64_t>(step) + 100);
  std::vector<std::int32_t> ids, targets, resets;
  for (std::int64_t i = 0; i < batch * time_steps; ++i) {
    ids.push_back(static_cast<std::int32_t>(random.integer(0, vocab - 1)));
    targets.push_back(static_cast<std::int32_t>(random.integer(0, vocab - 1)));
    resets.push_back(random.uniform(0, 1) < 0.1 ? 1 : 0);
  }
  const Shape shape{batch, time_steps};
  return {Tensor::from(ids, shape), Tensor::from(targets, shape), Tensor::from(resets, shape)};
}

// The rows of one rank, or, without one, the joined batch.
class Share {
 public:
  Share(DType dtype, Device device, Rank* rank)
      : rank_(rank),
        first_(rank == nullptr ? 0 : batch * rank->index() / rank->count()),
        rows_(rank == nullptr ? batch : batch * (rank->index() + 1) / rank->count() - first_),
        stream_(device),
        model_(LanguageModel::random(testing::TrainingRun::config(), 1, dtype, device)),
        gradients_(zero_gradients(model_.config(), device)),
        optimizer_(parameters(model_, gradients_)),
        state_(model_.make_state(rows_)) {}

  // The loss of the whole batch.
  double step(std::int64_t number) {
    const Data whole = data(number);
    const auto ours = [&](const Tensor& tensor) {
      Tensor part({rows_, time_steps}, DType::i32, model_.device());
      copy(tensor.view().rows(first_, rows_), part, stream_);
      return part;
    };
    const Tensor ids = ours(whole.ids), targets = ours(whole.targets), reset = ours(whole.reset);
    const Shape shape{rows_, time_steps, vocab};
    Tensor logits(shape, DType::f32, model_.device());
    Tensor dlogits(shape, model_.dtype(), model_.device());
    LanguageModelOptions options;
    options.tape = &tape_;
    options.reset = reset;
    model_.forward(ids, state_, Logits::all(logits), stream_, options);
    loss_.run(logits, targets, {batch * time_steps, dlogits}, stream_);
    model_.backward(tape_, dlogits, nullptr, gradients_, stream_);
    if (rank_ != nullptr) rank_->all_reduce(tensors(gradients_, model_.config()), stream_);
    optimizer_.step(1e-3f, stream_);
    const double mean = loss_.mean(stream_);
    return rank_ != nullptr ? rank_->all_reduce(mean) : mean;
  }

  std::vector<std::vector<double>> gradients() {
    std::vector<std::vector<double>> list;
    for (const TensorView& tensor : tensors(gradients_, model_.config())) {
      list.push_back(values(tensor));
    }
    return list;
  }
  std::vector<Bits> weights() const {
    std::vector<Bits> list;
    optimizer_.each_tensor(
        [&](const std::string&, ConstTensorView tensor) { list.push_back(bits(tensor)); });
    return list;
  }

 private:
  Rank* rank_;
  std::int64_t first_, rows_;
  Stream stream_;
  LanguageModel model_;
  LanguageModelWeights gradients_;
  AdamW optimizer_;
  StackState state_;
  LanguageModelTape tape_;
  TokenLoss loss_;
};

TEST(DataParallel, GradientsEqualThoseOfOneDeviceOnTheJoinedBatch) {
  each_group(1, [](const DataParallel& group) {
    if (group.devices().size() > batch) return;
    for (const DType dtype : testing::storage_dtypes()) {
      Share alone(dtype, group.devices()[0], nullptr);
      const double loss = alone.step(0);
      const std::vector<std::vector<double>> expected = alone.gradients();
      group.run([&](Rank& rank) {
        Share share(dtype, rank.device(), &rank);
        EXPECT_NEAR(share.step(0), loss, 1e-5 * loss);
        const std::vector<std::vector<double>> got = share.gradients();
        ASSERT_EQ(got.size(), expected.size());
        for (std::size_t i = 0; i < got.size(); ++i) {
          EXPECT_LE(relative_error(got[i], expected[i]), 2 * testing::gradient_bound(dtype))
              << name_of(dtype) << ", tensor " << i << ", rank " << rank.index();
        }
      });
    }
  });
}

TEST(DataParallel, EveryRankTakesTheSameStepsTheSameBitsEveryTime) {
  each_group(1, [](const DataParallel& group) {
    if (group.devices().size() > batch) return;
    std::vector<Bits> first;
    for (int time = 0; time < 2; ++time) {
      PerRank<std::vector<Bits>> all(group);
      group.run([&](Rank& rank) {
        Share share(DType::bf16, rank.device(), &rank);
        for (std::int64_t step = 0; step < 5; ++step) share.step(step);
        all[rank] = share.weights();
      });
      if (first.empty()) first = all[0];
      for (std::size_t r = 0; r < all.size(); ++r) {
        EXPECT_TRUE(all[r] == first) << "rank " << r << ", time " << time;
      }
    }
  });
}

TEST(DataParallel, AGroupOfOneIsNoGroupToTheBit) {
  each_group(1, [](const DataParallel& group) {
    if (group.devices().size() > 1) return;
    Share alone(DType::f32, group.devices()[0], nullptr);
    for (std::int64_t step = 0; step < 3; ++step) alone.step(step);
    group.run([&](Rank& rank) {
      Share share(DType::f32, rank.device(), &rank);
      for (std::int64_t step = 0; step < 3; ++step) share.step(step);
      EXPECT_TRUE(share.weights() == alone.weights());
    });
  });
}

// ---- failures -----------------------------------------------------------------------------------

// Runs `work`, whose rank 1 fails with "planned" while the others wait in some way: each of them
// must come out with a DeviceError, and the group must be good for another run.
void expect_all_come_out(const DataParallel& group,
                         const std::function<void(Rank&, Stream&)>& work) {
  std::mutex mutex;
  std::size_t came_out = 0;
  expect_error<std::runtime_error>("planned", [&] {
    group.run([&](Rank& rank) {
      Stream stream(rank.device());
      try {
        work(rank, stream);
        ADD_FAILURE() << "rank " << rank.index() << " saw nothing";
      } catch (const DeviceError& error) {
        EXPECT_EQ(std::string(error.what()),
                  "DataParallel: rank " + std::to_string(rank.index()) +
                      ": expected all ranks at work, got the failure of rank 1: planned");
        const std::lock_guard<std::mutex> lock(mutex);
        ++came_out;
        throw;
      }
    });
  });
  EXPECT_EQ(came_out, group.devices().size() - 1);
  group.run([](Rank& rank) { EXPECT_EQ(rank.all_reduce(1.0), rank.count()); });
}

void plan(const Rank& rank) {
  if (rank.index() == 1) throw std::runtime_error("planned");
}

TEST(DataParallel, AFailureBeforeTheSumEndsTheOthersThatWaitInTheirs) {
  each_group(2, [](const DataParallel& group) {
    expect_all_come_out(group, [](Rank& rank, Stream& stream) {
      std::vector<Tensor> ours = moved(tensors_of_rank(seed_of(rank)), rank.device());
      rank.all_reduce(views(ours), stream);
      plan(rank);
      rank.all_reduce(views(ours), stream);
    });
  });
}

TEST(DataParallel, AFailureAtOnceEndsTheOthersWhereverTheyAre) {
  each_group(2, [](const DataParallel& group) {
    for (int time = 0; time < 3; ++time) {
      expect_error<std::runtime_error>("planned", [&] {
        group.run([](Rank& rank) {
          plan(rank);
          rank.barrier();
        });
      });
    }
  });
}

TEST(DataParallel, AFailureEndsTheOthersThatWaitForTheirDevice) {
  each_group(2, [](const DataParallel& group) {
    expect_all_come_out(group, [](Rank& rank, Stream& stream) {
      std::vector<Tensor> ours = moved(tensors_of_rank(seed_of(rank)), rank.device());
      for (int i = 0; i < 50; ++i) rank.all_reduce(views(ours), stream);
      plan(rank);
      stream.synchronize();  // what is on the stream may have been cut short
      rank.all_reduce(1.0);
    });
  });
}

TEST(DataParallel, NobodyWaitsForARankThatHasReturned) {
  each_group(2, [](const DataParallel& group) {
    try {
      group.run([](Rank& rank) {
        if (rank.index() > 0) rank.barrier();
      });
      ADD_FAILURE() << "nobody minded";
    } catch (const DeviceError& error) {
      EXPECT_NE(
          std::string(error.what()).find("expected all ranks to meet, got rank 0, which has "),
          std::string::npos)
          << error.what();
    }
  });
}

TEST(DataParallel, ListsThatDifferAreRefusedByEveryRank) {
  each_group(2, [](const DataParallel& group) {
    group.run([](Rank& rank) {
      Stream stream(rank.device());
      std::vector<Tensor> ours;
      ours.push_back(Tensor::zeros({rank.index() == 0 ? 5 : 6}, DType::f32, rank.device()));
      EXPECT_THROW(rank.all_reduce(views(ours), stream), ArgumentError);
      if (rank.index() == 1) {
        expect_error<ArgumentError>(
            "Rank::all_reduce: tensors: expected those of rank 0, 1 tensors of 5 elements, got 1 "
            "tensors of 6 elements",
            [&] { rank.all_reduce(views(ours), stream); });
      } else {
        EXPECT_THROW(rank.all_reduce(views(ours), stream), ArgumentError);
      }
      ours[0] = Tensor::zeros({5}, DType::f32, rank.device());
      rank.all_reduce(views(ours), stream);  // and nothing is left of it
      stream.synchronize();
    });
  });
}

TEST(DataParallel, CallsThatDifferAreRefusedByEveryRank) {
  each_group(2, [](const DataParallel& group) {
    group.run([](Rank& rank) {
      if (rank.index() == 0) {
        expect_error<ArgumentError>(
            "Rank: call: expected all_reduce of a number, as that of rank 1, got barrier",
            [&] { rank.barrier(); });
      } else {
        expect_error<ArgumentError>(
            "Rank: call: expected barrier, as that of rank 0, got all_reduce of a number",
            [&] { rank.all_reduce(1.0); });
      }
      EXPECT_EQ(rank.all_reduce(1.0), rank.count());
    });
  });
}

TEST(DataParallel, Errors) {
  expect_error<ArgumentError>("DataParallel: devices: expected at least one, got none",
                              [] { DataParallel group({}); });
  expect_error<ArgumentError>("DataParallel: devices: expected CUDA devices, got cpu",
                              [] { DataParallel group({Device::cpu()}); });
  const int count = cuda_device_count();
  expect_error<DeviceError>("DataParallel: devices: expected some of " + std::to_string(count) +
                                " CUDA devices, got cuda:" + std::to_string(count),
                            [&] { DataParallel group({Device::cuda(count)}); });
  if (count == 0) return;
  expect_error<ArgumentError>("DataParallel: devices: expected every device once, got cuda:0 twice",
                              [] {
                                DataParallel group({Device::cuda(), Device::cuda()});
                              });
}

TEST(DataParallel, OperandsThatDoNotFitAreRefused) {
  each_group(1, [](const DataParallel& group) {
    if (group.devices().size() > 1) return;
    group.run([](Rank& rank) {
      Stream stream(rank.device()), elsewhere(Device::cpu());
      Tensor half = Tensor::zeros({4}, DType::bf16, rank.device());
      Tensor host = Tensor::zeros({4}, DType::f32);
      Tensor wide = Tensor::zeros({4, 4}, DType::f32, rank.device());
      const auto refused = [&](const std::string& text, const TensorView& tensor, Stream& on) {
        expect_error<ArgumentError>("Rank::all_reduce: " + text,
                                    [&] { rank.all_reduce({tensor}, on); });
      };
      refused("tensors: expected f32, got bf16", half, stream);
      refused("tensors: expected cuda:0, got cpu", host, stream);
      refused("tensors: expected dense ones, got a strided view", wide.view().columns(0, 2),
              stream);
      refused("stream: expected cuda:0, got cpu", wide, elsewhere);
    });
  });
}

}  // namespace
}  // namespace mamba
