// A call that takes no stream sees all that was queued before it, on whichever stream: each of them
// is called while the work that it must see still waits behind 50 ms of other work.
#ifdef MAMBA_HAS_CUDA
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include <mamba/checkpoint.hpp>
#include <mamba/generator.hpp>
#include <mamba/graph.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/state_file.hpp>

#include "each.hpp"
#include "model/training_run.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::Random;
using testing::TemporaryFolder;
using testing::TrainingRun;

using Bytes = std::vector<unsigned char>;

// What is queued behind it runs 50 ms later at the earliest.
void hold_up(Stream& stream) {
  ASSERT_EQ(cudaLaunchHostFunc(
                static_cast<cudaStream_t>(stream.cuda_stream()),
                [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }, nullptr),
            cudaSuccess);
}

Bytes joined(const std::vector<ConstTensorView>& views) {
  Bytes all;
  for (const ConstTensorView& view : views) {
    const Bytes own = bits(view);
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}
Bytes joined(const MambaState& state) { return joined({state.conv, state.ssm}); }
Bytes joined(const StackState& state) {
  Bytes all;
  for (const MambaState& layer : state.layers) {
    const Bytes own = joined(layer);
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

// A small model on a device, two states of it, and a stream of somebody else's.
struct Scene {
  explicit Scene(Device on)
      : device(on), model(LanguageModel::random(TrainingRun::config(), 1, DType::bf16, on)) {
    Stream& own = default_stream(on);
    testing::Random random(3);
    for (StackState* values : {&old_values, &new_values}) {
      *values = model.make_state(3);
      for (MambaState& layer : values->layers) {
        const Tensor conv = random.normal_tensor(layer.conv.shape(), DType::bf16);
        const Tensor ssm = random.normal_tensor(layer.ssm.shape());
        copy(conv, layer.conv, own);
        copy(ssm, layer.ssm, own);
        own.synchronize();
      }
    }
    state = old_values.clone();
  }

  // `state` gets its new values, after a while.
  void queue() {
    hold_up(stream);
    state.copy_from(new_values, stream);
  }

  Device device;
  LanguageModel model;
  StackState old_values, new_values, state;
  Stream stream{device};
};

struct Verb {
  const char* name;
  // The bytes of its result, which depends on scene.state.
  std::function<Bytes(Scene&)> call;
};

std::vector<Verb> verbs() {
  static const auto rows = [](Device device) {
    return Tensor::from<std::int32_t>({2, 0}, {2}).to(device);
  };
  static const auto mask = [](Device device) {
    return Tensor::from<std::int32_t>({0, 1, 0}, {3}).to(device);
  };
  static const auto layer = [](Scene& s) -> MambaState& { return s.state.layers[1]; };
  return {
      {"Tensor::clone", [](Scene& s) { return joined({layer(s).ssm.clone()}); }},
      {"Tensor::to", [](Scene& s) { return joined({layer(s).ssm.to(Device::cpu())}); }},
      {"Tensor::to of another dtype",
       [](Scene& s) { return joined({layer(s).conv.to(Device::cpu(), DType::f32)}); }},
      {"MambaState::clone", [](Scene& s) { return joined(layer(s).clone()); }},
      {"MambaState::copy_from",
       [](Scene& s) {
         MambaState to = s.model.stack().layer(1).make_state(3);
         to.copy_from(layer(s));
         return joined(to);
       }},
      {"MambaState::reset",
       [](Scene& s) {
         layer(s).reset();
         s.stream.synchronize();
         return joined(layer(s));
       }},
      {"MambaState::reset of rows",
       [](Scene& s) {
         layer(s).reset(mask(s.device));
         s.stream.synchronize();
         return joined(layer(s));
       }},
      {"MambaState::to", [](Scene& s) { return joined(layer(s).to(Device::cpu(), DType::bf16)); }},
      {"MambaState::gather", [](Scene& s) { return joined(layer(s).gather(rows(s.device))); }},
      {"MambaState::scatter",
       [](Scene& s) {
         const MambaState two = s.old_values.layers[0].gather(rows(s.device));
         layer(s).scatter(two, rows(s.device));
         s.stream.synchronize();
         return joined(layer(s));
       }},
      {"MambaState::repeat", [](Scene& s) { return joined(layer(s).repeat(2)); }},
      {"MambaState::concat",
       [](Scene& s) {
         return joined(MambaState::concat({&layer(s), &s.state.layers[0]}));
       }},
      {"StackState::clone", [](Scene& s) { return joined(s.state.clone()); }},
      {"StackState::copy_from",
       [](Scene& s) {
         StackState to = s.model.make_state(3);
         to.copy_from(s.state);
         return joined(to);
       }},
      {"StackState::reset",
       [](Scene& s) {
         s.state.reset();
         s.stream.synchronize();
         return joined(s.state);
       }},
      {"StackState::reset of rows",
       [](Scene& s) {
         s.state.reset(mask(s.device));
         s.stream.synchronize();
         return joined(s.state);
       }},
      {"StackState::to", [](Scene& s) { return joined(s.state.to(Device::cpu(), DType::bf16)); }},
      {"StackState::gather", [](Scene& s) { return joined(s.state.gather(rows(s.device))); }},
      {"StackState::scatter",
       [](Scene& s) {
         s.state.scatter(s.old_values.gather(rows(s.device)), rows(s.device));
         s.stream.synchronize();
         return joined(s.state);
       }},
      {"StackState::repeat", [](Scene& s) { return joined(s.state.repeat(2)); }},
      {"StackState::concat",
       [](Scene& s) {
         return joined(StackState::concat({&s.state, &s.old_values}));
       }},
      {"to_wide_conv_state", [](Scene& s) { return joined({to_wide_conv_state(layer(s).conv)}); }},
      {"from_wide_conv_state",
       [](Scene& s) { return joined({from_wide_conv_state(layer(s).conv)}); }},
      {"Layer::forward",
       [](Scene& s) {
         const Tensor x = Tensor::zeros({3, 2, 32}, DType::bf16, s.device);
         const Tensor y = s.model.stack().layer(1).forward(x, layer(s));
         return joined({y, layer(s).ssm});
       }},
      {"Stack::forward",
       [](Scene& s) {
         const Tensor x = Tensor::zeros({3, 2, 32}, DType::bf16, s.device);
         const Tensor y = s.model.stack().forward(x, s.state);
         return joined({y, layer(s).ssm});
       }},
      {"save",
       [](Scene& s) {
         const TemporaryFolder folder;
         save(folder.file("state"), s.state);
         return joined(load_state(folder.file("state")).state);
       }},
      {"save_safetensors",
       [](Scene& s) {
         const TemporaryFolder folder;
         save_safetensors(folder.file("tensors"), {{"ssm", layer(s).ssm}});
         SafetensorsFile file(folder.file("tensors"));
         return joined({file.read(file.entry("ssm"))});
       }},
      {"pinned memory, cloned",
       [](Scene& s) {
         Tensor pinned = Tensor::pinned(layer(s).ssm.shape(), DType::f32);
         copy(layer(s).ssm, pinned, s.stream);
         return joined({pinned.clone()});
       }},
      {"pinned memory, saved",
       [](Scene& s) {
         const TemporaryFolder folder;
         Tensor pinned = Tensor::pinned(layer(s).ssm.shape(), DType::f32);
         copy(layer(s).ssm, pinned, s.stream);
         save_safetensors(folder.file("tensors"), {{"ssm", pinned}});
         SafetensorsFile file(folder.file("tensors"));
         return joined({file.read(file.entry("ssm"))});
       }},
      {"Generator::continue_from",
       [](Scene& s) {
         StackState given = s.model.make_state(1);
         for (std::size_t i = 0; i < given.layers.size(); ++i) {
           MambaState& to = given.layers[i];
           copy(s.state.layers[i].conv.view().rows(0, 1), to.conv, s.stream);
           copy(s.state.layers[i].ssm.view().rows(0, 1), to.ssm, s.stream);
         }
         const Tensor logits = Tensor::zeros({1, TrainingRun::vocab}, DType::f32, s.device);
         Generator generator(s.model);
         s.queue();
         for (std::size_t i = 0; i < given.layers.size(); ++i) {
           copy(s.state.layers[i].ssm.view().rows(0, 1), given.layers[i].ssm, s.stream);
         }
         generator.continue_from({1, 2}, given, logits);
         return joined({generator.state().layers[1].ssm});
       }},
  };
}

TEST_EACH(CudaOrder, EveryCallWithoutAStreamSeesWhatWasQueued, testing::CudaDevice device) {
  for (const Verb& verb : verbs()) {
    SCOPED_TRACE(verb.name);
    Scene at_once(device), behind(device);
    at_once.queue();
    at_once.stream.synchronize();
    const Bytes expected = verb.call(at_once);
    behind.queue();
    EXPECT_TRUE(verb.call(behind) == expected);
  }
}

// README's training example: step, then save, on a stream of one's own.
TEST_EACH(CudaOrder, ACheckpointHasWhatTheQueuedStepWrites, testing::CudaDevice device) {
  const TemporaryFolder folder;
  TrainingRun training(DType::bf16, device);
  training.step();
  const auto values = [&] {
    Bytes all;
    training.optimizer.each_tensor([&](const std::string&, ConstTensorView view) {
      const Bytes own = bits(view);
      all.insert(all.end(), own.begin(), own.end());
    });
    return all;
  };
  Stream stream(device);
  hold_up(stream);
  training.optimizer.step(0.5f, stream);
  training.save(folder.file("run"));
  stream.synchronize();
  const Bytes stepped = values();
  hold_up(stream);
  training.optimizer.step(0.5f, stream);  // overwritten by what is loaded
  training.load(folder.file("run"));
  stream.synchronize();
  EXPECT_TRUE(values() == stepped);
}

TEST_EACH(CudaOrder, AModelIsSavedAndIdentifiedAsTheQueuedStepLeavesIt,
          testing::CudaDevice device) {
  const TemporaryFolder folder;
  TrainingRun training(DType::f32, device);
  training.step();
  Stream stream(device);
  hold_up(stream);
  training.optimizer.step(0.5f, stream);
  const std::string early = training.model.fingerprint();
  stream.synchronize();
  EXPECT_EQ(training.model.fingerprint(), early);
  hold_up(stream);
  training.optimizer.step(0.5f, stream);
  training.model.save(folder.file("model"));
  stream.synchronize();
  const std::string late = training.model.fingerprint();
  EXPECT_NE(early, late);
  EXPECT_EQ(LanguageModel::load(folder.file("model"), DType::f32, device).fingerprint(), late);
}

// Calls `body` while another thread records and replays, again and again, always with one result.
void beside_a_recorder(Device device, const std::function<void()>& body) {
  std::atomic<bool> done{false}, ended{false};
  std::atomic<int> recordings{0};
  std::string problem;
  std::thread recorder([&] {
    try {
      const LanguageModel model =
          LanguageModel::random(TrainingRun::config(), 1, DType::bf16, device);
      Stream stream(device);
      StackState state = model.make_state(2);
      const Tensor ids = Tensor::zeros({2, 1}, DType::i32, device);
      Tensor logits({2, TrainingRun::vocab}, DType::f32, device);
      const auto step = [&](Stream& on) { model.forward(ids, state, Logits::last(logits), on); };
      for (int i = 0; i < 2; ++i) step(stream);
      stream.synchronize();
      const Bytes expected = bits(logits);
      while (!done) {
        state.reset(stream);
        const Graph graph = Graph::record(stream, step);
        graph.replay();
        graph.replay();
        stream.synchronize();
        if (bits(logits) != expected) throw std::runtime_error("another result");
        ++recordings;
      }
    } catch (const std::exception& error) {
      problem = error.what();
    }
    ended = true;
  });
  while (recordings == 0 && !ended) std::this_thread::yield();
  body();
  done = true;
  recorder.join();
  EXPECT_EQ(problem, "");
  EXPECT_GT(recordings, 0);
}

// Waiting for all streams ends nobody's recording and is itself not recorded.
TEST_EACH(CudaOrder, OneThreadRecordsWhileAnotherCallsEveryVerb, testing::CudaDevice device) {
  beside_a_recorder(device, [&] {
    for (const Verb& verb : verbs()) {
      SCOPED_TRACE(verb.name);
      Scene scene(device);
      EXPECT_NO_THROW(verb.call(scene));
    }
  });
}

// Nor does the end of a stream, with all that it kept for its products.
TEST_EACH(CudaOrder, OneThreadRecordsWhileStreamsComeAndGo, testing::CudaDevice device) {
  Random random(6);
  const Tensor x = random.normal_tensor({300, 768}, DType::bf16).to(device);
  const Tensor weight = random.normal_tensor({80, 768}, DType::bf16).to(device);
  beside_a_recorder(device, [&] {
    for (int i = 0; i < 300; ++i) {
      Tensor y({300, 80}, DType::f32, device);
      Stream stream(device);
      Matmul op;
      op.x = x;
      op.weight = weight;
      op.y = y;
      run(op, stream);
      stream.synchronize();
    }
  });
}

// What was queued before a recording began is waited for also while it goes on.
TEST_EACH(CudaOrder, ARecordingHidesNothingThatWasQueuedBefore, testing::CudaDevice device) {
  Scene scene(device);
  Tensor other = Tensor::zeros({4}, DType::f32, device);
  std::atomic<bool> recording{false}, end{false};
  std::thread recorder([&] {
    scene.queue();
    const Graph graph = Graph::record(scene.stream, [&](Stream& on) {
      zero(other, on);
      recording = true;
      while (!end) std::this_thread::yield();
    });
  });
  while (!recording) std::this_thread::yield();
  const Bytes seen = joined(scene.state.clone());
  end = true;
  recorder.join();
  EXPECT_TRUE(seen == joined(scene.new_values));
}

TEST_EACH(CudaOrder, ACopyOnTheHostRefusesAStreamOfAGpu, testing::CudaDevice device) {
  Stream stream(device);
  Tensor pinned = Tensor::pinned({2}, DType::f32);
  Tensor host = Tensor::zeros({2}, DType::f32);
  testing::expect_error<ArgumentError>(
      "copy: stream: expected a stream of the CPU, got " + device.name(),
      [&] { copy(pinned, host, stream); });
}

// A stream's flags are told together, once, and none is left for later.
TEST_EACH(CudaOrder, AllBadValuesAreToldAtOnce, testing::CudaDevice device) {
  Stream stream(device);
  const Tensor ids = Tensor::from<std::int32_t>({7}, {1, 1}).to(device);
  const Tensor table = Tensor::zeros({4, 8}, DType::f32, device);
  Tensor y({1, 1, 8}, DType::f32, device);
  Embedding embedding;
  embedding.ids = ids;
  embedding.table = table;
  embedding.y = y;
  const Tensor rows = Tensor::from<std::int32_t>({9}, {1}).to(device);
  Tensor to({1, 8}, DType::f32, device);
  CopyRows gather;
  gather.from = table;
  gather.from_rows = rows;
  gather.to = to;
  run(embedding, stream);
  run(gather, stream);
  testing::expect_error<ArgumentError>(
      "embedding: ids: expected ids of the table, got one outside of it; copy_rows: rows: "
      "expected "
      "rows of the tensor, got one outside of it",
      [&] { stream.synchronize(); });
  stream.synchronize();
}

}  // namespace
}  // namespace mamba
#endif
