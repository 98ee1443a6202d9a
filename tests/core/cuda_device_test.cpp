// Streams and memory as CUDA has them: streams of the caller, pinned memory, too little memory,
// devices that are not there and several that are.
#ifdef MAMBA_HAS_CUDA  // set by the build: the CUDA runtime is linked only then
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include <mamba/generator.hpp>
#include <mamba/graph.hpp>
#include <mamba/language_model.hpp>
#include <mamba/state_file.hpp>

#include "detail/limits.hpp"
#include "each.hpp"
#include "files.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::golden_folder;
using testing::Random;
using testing::values;

int current_device() {
  int device = -1;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  return device;
}

// Another device is current while it lives.
class Current {
 public:
  explicit Current(int device) : before_(current_device()) {
    EXPECT_EQ(cudaSetDevice(device), cudaSuccess);
  }
  ~Current() { cudaSetDevice(before_); }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_;
};

// A stream that the library has not made; on a thread of its own, so that no other's device is
// touched.
class CallersStream {
 public:
  explicit CallersStream(Device device) : device_(device) {
    apart([&] { return cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); });
  }
  ~CallersStream() {
    apart([&] { return cudaStreamDestroy(stream_); });
  }
  CallersStream(const CallersStream&) = delete;
  CallersStream& operator=(const CallersStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  template <class Call>
  void apart(Call call) const {
    std::thread([&] {
      EXPECT_EQ(cudaSetDevice(device_.index()), cudaSuccess);
      EXPECT_EQ(call(), cudaSuccess);
    }).join();
  }
  Device device_;
  cudaStream_t stream_ = nullptr;
};

LayerConfig small_config() {
  LayerConfig config;
  config.d_model = 6;
  config.d_state = 5;
  return config;
}

MambaState random_state(DType dtype, Device device) {
  Random random(1);
  MambaState state(small_config(), 3, dtype, device);
  state.conv = random.normal_tensor(state.conv.shape(), dtype).to(device);
  state.ssm = random.normal_tensor(state.ssm.shape()).to(device);
  return state;
}

void expect_same(const MambaState& a, const MambaState& b, const std::string& what) {
  EXPECT_EQ(bits(a.conv), bits(b.conv)) << what;
  EXPECT_EQ(bits(a.ssm), bits(b.ssm)) << what;
}

Tensor some_ids(std::int64_t batch, std::int64_t time) {
  Random random(3);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(batch * time));
  for (auto& id : ids) id = static_cast<std::int32_t>(random.integer(0, 255));
  return Tensor::from(ids, {batch, time});
}

// ---- streams of the caller ----------------------------------------------------------------------

TEST_EACH(BorrowedStream, WorkIsQueuedThereAndNowhereElse, testing::CudaDevice device) {
  const CallersStream callers(device);
  Stream stream = Stream::borrow(device, callers.get());
  EXPECT_EQ(stream.device(), device);
  EXPECT_EQ(stream.cuda_stream(), callers.get());
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  const Tensor ids = some_ids(2, 20).to(device);
  StackState state = model.make_state(2);
  Tensor logits({2, 256}, DType::f32, device);
  model.forward(ids, state, Logits::last(logits),
                stream);  // for the first time, so that memory is there
  ASSERT_EQ(cudaStreamSynchronize(callers.get()), cudaSuccess);
  const auto first = bits(logits);
  state.reset(stream);
  zero(logits, stream);
  ASSERT_EQ(cudaStreamSynchronize(callers.get()), cudaSuccess);

  // While the caller's stream is being recorded, what goes there does not run; the rest would.
  ASSERT_EQ(cudaStreamBeginCapture(callers.get(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  model.forward(ids, state, Logits::last(logits), stream);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(callers.get(), &graph), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(values(logits), std::vector<double>(512, 0.0));
  for (const MambaState& layer : state.layers) {
    for (const double value : values(layer.ssm)) ASSERT_EQ(value, 0);
  }
  std::size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_GT(nodes, 10u);
  cudaGraphDestroy(graph);

  model.forward(ids, state, Logits::last(logits), stream);
  ASSERT_EQ(cudaStreamSynchronize(callers.get()), cudaSuccess);
  EXPECT_EQ(bits(logits), first);
}

TEST_EACH(BorrowedStream, OutlivesTheObject, testing::CudaDevice device) {
  const CallersStream callers(device);
  Tensor numbers = Tensor::from<float>({1, 2}, {2}).to(device);
  {
    Stream stream = Stream::borrow(device, callers.get());
    Stream moved = std::move(stream);
    zero(numbers, moved);
  }
  EXPECT_EQ(cudaStreamSynchronize(callers.get()), cudaSuccess);
  EXPECT_EQ(values(numbers), (std::vector<double>{0, 0}));
  EXPECT_EQ(cudaMemsetAsync(numbers.view().data(), 0xff, 8, callers.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(callers.get()), cudaSuccess);
  EXPECT_TRUE(std::isnan(values(numbers)[1]));
}

TEST_EACH(BorrowedStream, ReportsBadValues, testing::CudaDevice device) {
  const CallersStream callers(device);
  Stream stream = Stream::borrow(device, callers.get());
  const Tensor ids = Tensor::from<std::int32_t>({9}, {1, 1}).to(device);
  const Tensor table = Tensor::zeros({3, 4}, DType::f32, device);
  Tensor y({1, 1, 4}, DType::f32, device);
  Embedding op;
  op.ids = ids;
  op.table = table;
  op.y = y;
  run(op, stream);
  expect_error<ArgumentError>("embedding: ids: expected ids of the table, got one outside of it",
                              [&] { stream.synchronize(); });
  stream.synchronize();
}

// ---- pinned memory ------------------------------------------------------------------------------

// Recording refuses whatever would wait, and runs nothing.
TEST_EACH(PinnedMemory, AStateGoesThereAndBackWithoutWaiting, testing::CudaDevice device,
          DType dtype) {
  for (const DType kept_as : {dtype, DType::f32}) {
    SCOPED_TRACE(device.name() + " " + name_of(dtype) + " as " + name_of(kept_as));
    Stream stream(device);
    const MambaState state = random_state(dtype, device);
    MambaState pinned;
    pinned.conv = Tensor::pinned(state.conv.shape(), kept_as);
    pinned.ssm = Tensor::pinned(state.ssm.shape(), DType::f32);
    EXPECT_EQ(pinned.device(), Device::cpu());
    MambaState back(small_config(), 3, dtype, device);
    const auto there_and_back = [&](Stream& on) {
      copy(state.conv, pinned.conv, on);
      copy(state.ssm, pinned.ssm, on);
      copy(pinned.conv, back.conv, on);
      copy(pinned.ssm, back.ssm, on);
    };
    there_and_back(stream);  // for the first time, so that memory is there
    back.reset(stream);
    stream.synchronize();
    const Graph graph = Graph::record(stream, there_and_back);
    expect_same(back, MambaState(small_config(), 3, dtype, device), "recorded, not run");
    graph.replay();
    stream.synchronize();
    expect_same(back, state, "there and back");
    EXPECT_EQ(bits(pinned.ssm), bits(state.ssm));
    EXPECT_EQ(values(pinned.conv), values(state.conv));
  }
}

// ---- copies -------------------------------------------------------------------------------------

// Planes of rows, odd and even, and rows further apart than CUDA's own copies take.
TEST_EACH(CudaCopy, BringsEveryPlaneOfAStridedView, testing::CudaDevice device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  for (const std::int64_t first : {0, 1, 2, 8}) {
    for (const std::int64_t count : {1, 3, 8, 16}) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " columns " + std::to_string(first) + " to " +
                   std::to_string(first + count));
      const Tensor whole = Random(2).normal_tensor({3, 5, 32}, dtype);
      const Tensor there = whole.to(device);
      const auto part = [&](const Tensor& tensor) {
        return tensor.view().steps(1, 3).columns(first, count);
      };
      Stream stream(device);
      const testing::Guarded to({3, 3, count}, dtype, device, 8);
      copy(part(there), to.view(), stream);
      stream.synchronize();
      EXPECT_EQ(values(to.view()), values(part(whole)));
      to.expect_untouched("copy");
      zero(to.view(), stream);
      stream.synchronize();
      for (const double value : values(to.view())) ASSERT_EQ(value, 0);
      to.expect_untouched("zero");
    }
  }
}

TEST_EACH(CudaCopy, BringsRowsThatAreTwoGigabytesApart, testing::CudaDevice device) {
  constexpr std::int64_t apart = (std::int64_t{1} << 30) + 64;
  std::size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  if (free < std::size_t{6} << 30) GTEST_SKIP() << "needs 6 GB of device memory";
  Tensor wide({2, apart}, DType::bf16, device);
  const TensorView rows = wide.view().columns(0, 8);
  const Tensor some = Random(2).normal_tensor({2, 8}, DType::bf16);
  const Tensor there = some.to(device);
  Tensor back({2, 8}, DType::bf16, device), home({2, 8}, DType::bf16);
  Stream stream(device);
  copy(there, rows, stream);
  copy(rows, back, stream);
  copy(rows, home, stream);
  stream.synchronize();
  EXPECT_EQ(bits(back), bits(some));
  EXPECT_EQ(bits(home), bits(some));
  zero(rows, stream);
  stream.synchronize();
  EXPECT_EQ(values(rows), std::vector<double>(16, 0.0));
}

// ---- what is not there --------------------------------------------------------------------------

template <class Statement>
void expect_device_error(const std::string& beginning, Statement statement) {
  try {
    statement();
    ADD_FAILURE() << "expected a DeviceError: " << beginning;
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, beginning.size()), beginning);
  }
}

TEST_EACH(TooLittleMemory, IsNamedAndTheLibraryStillWorks, testing::CudaDevice device) {
  constexpr std::int64_t too_many = std::int64_t{1} << 48;  // 2^50 bytes of f32
  const std::string bytes = "1125899906842624 bytes";
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  const Tensor ids = some_ids(2, 9).to(device);
  Tensor logits({2, 256}, DType::f32, device);
  Stream stream(device);
  const auto forward = [&] {
    StackState state = model.make_state(2);
    model.forward(ids, state, Logits::last(logits), stream);
    stream.synchronize();
    return bits(logits);
  };
  const auto before = forward();

  expect_device_error("Tensor: memory: expected " + bytes + " free on " + device.name() + ", got",
                      [&] { Tensor({too_many}, DType::f32, device); });
  expect_device_error(
      "Tensor::pinned: memory: expected " + bytes + " that can be locked in host memory, got",
      [&] { Tensor::pinned({too_many}, DType::f32); });
  expect_device_error("Tensor: memory: expected ",
                      [&] { model.make_state(std::int64_t{1} << 30); });
  {
    Scratch scratch(stream);
    expect_device_error("Tensor: memory: expected " + bytes,
                        [&] { scratch.take({too_many}, DType::f32); });
    const TensorView usable = scratch.take({1000}, DType::f32);
    zero(usable, stream);
    EXPECT_EQ(forward(), before);
  }
  EXPECT_EQ(forward(), before);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST(MissingDevice, IsNamedAndTheLibraryStillWorks) {
  const int count = cuda_device_count();
  const Device missing = Device::cuda(count);
  const std::string expected =
      count == 0 ? "cpu (no CUDA device or no driver on this machine), got cuda:0"
                 : "one of " + std::to_string(count) + " CUDA devices, got " + missing.name();
  const auto expect = [&](const std::string& where, auto statement) {
    expect_error<DeviceError>(where + ": device: expected " + expected, statement);
  };
  expect("Tensor", [&] { Tensor({1}, DType::f32, missing); });
  expect("Stream", [&] { Stream{missing}; });
  expect("Stream::borrow", [&] { Stream::borrow(missing, nullptr); });
  for (int twice = 0; twice < 2; ++twice) expect("Stream", [&] { default_stream(missing); });
  expect("Stream", [&] { Tensor::zeros({1}, DType::f32).to(missing); });
  if (count == 0) expect("Tensor::pinned", [&] { Tensor::pinned({1}, DType::f32); });
  for (const Device device : testing::devices()) {
    EXPECT_EQ(values(Tensor::zeros({2}, DType::f32, device)), (std::vector<double>{0, 0}));
  }
}

// ---- several devices ----------------------------------------------------------------------------

class TwoDevices : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 2) GTEST_SKIP() << "needs two CUDA devices";
  }
};

// Loads, reads, records, generates and frees on `device`; the greedy text.
std::vector<std::int32_t> everything_on(Device device) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  const Tensor ids = some_ids(2, 40).to(device);
  StackState state = model.make_state(2);
  Tensor logits({2, 256}, DType::f32, device);
  Stream stream(device);
  const auto forward = [&](Stream& on) { model.forward(ids, state, Logits::last(logits), on); };
  forward(stream);
  stream.synchronize();
  const auto eager = bits(logits);
  state.reset(stream);
  const Graph graph = Graph::record(stream, forward);
  graph.replay();
  stream.synchronize();
  EXPECT_EQ(bits(logits), eager);

  const Tensor rows = Tensor::from<std::int32_t>({1, 0}, {2}).to(device);
  const StackState swapped = state.gather(rows).repeat(2).gather(rows);
  EXPECT_EQ(bits(swapped.layers[1].ssm.view().rows(0, 1)),
            bits(state.layers[1].ssm.view().rows(1, 1)));

  const CallersStream callers(device);
  Stream borrowed = Stream::borrow(device, callers.get());
  SamplingOptions sampling;
  sampling.temperature = 0;
  Generator generator(model, sampling, borrowed);
  generator.read({104, 101, 108, 108, 111});
  GenerateOptions options;
  options.max_tokens = 20;
  options.ignore_eos = true;
  return generator.generate(options).tokens;
}

TEST_F(TwoDevices, OneWorksWhileTheOtherIsCurrent) {
  std::vector<std::int32_t> texts[2];
  for (int current : {0, 1}) {
    const Current outside(current);
    texts[current] = everything_on(Device::cuda(1 - current));
    EXPECT_EQ(current_device(), current) << "left as found";
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST_F(TwoDevices, AStateTravels) {
  const Device first = Device::cuda(0);
  const Device second = Device::cuda(1);
  for (const DType dtype : testing::storage_dtypes()) {
    SCOPED_TRACE(name_of(dtype));
    const MambaState state = random_state(dtype, first);
    const MambaState there = state.to(second, dtype);
    EXPECT_EQ(there.device(), second);
    const MambaState home = there.to(Device::cpu(), dtype);
    expect_same(home, state, "cuda:0 to cuda:1 to the CPU");

    Stream leaving(first), arriving(second);
    const MambaState pushed = state.to(second, dtype, leaving);
    leaving.synchronize();
    expect_same(pushed, state, "on a stream of the source");
    const MambaState pulled = state.to(second, dtype, arriving);
    arriving.synchronize();
    expect_same(pulled, state, "on a stream of the target");
    const MambaState wide = state.to(second, DType::f32);
    EXPECT_EQ(values(wide.conv), values(state.conv)) << "converted on the way";
  }
}

TEST_F(TwoDevices, StridedViewsTravel) {
  const Tensor whole = Random(2).normal_tensor({3, 5, 8}).to(Device::cuda(0));
  const ConstTensorView part = whole.view().steps(1, 3).columns(2, 5);
  for (const Device side : {Device::cuda(0), Device::cuda(1)}) {
    Stream stream(side);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const testing::Guarded to({3, 3, 5}, dtype, Device::cuda(1), 4);
      copy(part, to.view(), stream);
      stream.synchronize();
      const Tensor expected = [&] {
        Tensor dense(part.shape(), dtype, Device::cuda(0));
        copy(part, dense, default_stream(Device::cuda(0)));
        default_stream(Device::cuda(0)).synchronize();
        return dense;
      }();
      EXPECT_EQ(values(to.view()), values(expected)) << name_of(dtype) << " on " << side.name();
      to.expect_untouched(name_of(dtype));
    }
  }
}

// ---- contexts -----------------------------------------------------------------------------------

template <class Function>
Function driver(const char* name) {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY);
  return library == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(library, name));
}

// Whether the process has a context on a device, which takes some hundred MB of its memory.
bool has_context(int device) {
  const auto state = driver<decltype(&cuDevicePrimaryCtxGetState)>("cuDevicePrimaryCtxGetState");
  unsigned flags = 0;
  int active = -1;
  if (state == nullptr || state(device, &flags, &active) != CUDA_SUCCESS) return true;
  return active != 0;
}

CUcontext current_context() {
  const auto current = driver<decltype(&cuCtxGetCurrent)>("cuCtxGetCurrent");
  CUcontext context = nullptr;
  EXPECT_EQ(current(&context), CUDA_SUCCESS);
  return context;
}

// In a process where nothing has been done on any device: its exit status is 0 if `use` leaves
// contexts on the devices of `used` and on no other.
[[noreturn]] void exit_with_contexts_only_on(const std::vector<int>& used,
                                             const std::function<void()>& use) {
  const int count = cuda_device_count();
  int status = 0;
  for (int i = 0; i < count; ++i) status = has_context(i) ? 2 : status;
  use();
  for (int i = 0; i < count; ++i) {
    const bool wanted = std::find(used.begin(), used.end(), i) != used.end();
    if (has_context(i) == wanted) continue;
    std::fprintf(stderr, "%s context on device %d\n", wanted ? "no" : "a", i);
    status = 1;
  }
  std::exit(status);
}
void expect_contexts_only_on(const std::vector<int>& used, const std::function<void()>& use) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";  // begins the program again
  EXPECT_EXIT(exit_with_contexts_only_on(used, use), ::testing::ExitedWithCode(0), "");
}

TEST(CudaContext, AskingWhatIsThereMakesNone) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "needs a CUDA device";
  expect_contexts_only_on({}, [] {
    cuda::limits(Device::cuda(0), "test");
    const Stream stream;  // of the CPU
    try {
      Tensor({1}, DType::f32, Device::cuda(cuda_device_count()));
    } catch (const DeviceError&) {
    }
  });
}

TEST_F(TwoDevices, WorkOnOneMakesNoContextOnTheOther) {
  expect_contexts_only_on({1}, [] {
    everything_on(Device::cuda(1));
    const Tensor pinned = Tensor::pinned({100}, DType::f32);
    std::thread other([] {
      everything_on(Device::cuda(1));
      Tensor::pinned({100}, DType::f32);
    });
    other.join();
  });
}

TEST_F(TwoDevices, AThreadThatChoseNoDeviceHasStillChosenNone) {
  for (const int used : {0, 1}) {
    std::thread([&] {
      everything_on(Device::cuda(used));
      EXPECT_EQ(current_device(), 0);
      if (used != 0) {
        EXPECT_EQ(current_context(), nullptr);
      }
    }).join();
  }
  std::thread([] {
    ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
    const CUcontext before = current_context();
    everything_on(Device::cuda(0));
    EXPECT_EQ(current_device(), 1);
    EXPECT_EQ(current_context(), before);
    void* memory = nullptr;  // the caller's next call goes where it would have gone
    ASSERT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
    cudaPointerAttributes attributes{};
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, memory), cudaSuccess);
    EXPECT_EQ(attributes.device, 1);
    cudaFree(memory);
  }).join();
}

// CUDA itself does not go on in a forked process; all of the CPU does.
TEST_EACH(CudaFork, TheCopyWorksOnTheCpu, testing::CudaDevice device) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  StackState state = model.make_state(2);
  model.forward(some_ids(2, 40).to(device), state, Logits::none(), default_stream(device));
  const testing::TemporaryFolder folder;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    const auto work = [&]() noexcept {  // an error ends the process
      const LanguageModel own = LanguageModel::load(golden_folder("bytes"));
      StackState on_cpu = own.make_state(2);
      own.forward(some_ids(2, 40), on_cpu, Logits::none(), default_stream(Device::cpu()));
      save(folder.file("state"), on_cpu.clone());
    };
    work();
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(bits(load_state(folder.file("state")).state.layers[0].ssm.view()).size(),
            bits(state.layers[0].ssm.view()).size());
}

// ---- limits -------------------------------------------------------------------------------------

TEST_EACH(CudaLimits, AreTheDevicesAndTheThreadsLess, testing::CudaDevice device) {
  const auto shared = [&] { return cuda::limits(device, "test").shared_memory; };
  int asked = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&asked, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index()),
            cudaSuccess);
  EXPECT_EQ(shared(), asked);
  {
    cuda::Limits less = cuda::limits(device, "test");
    less.shared_memory = 64 << 10;
    const cuda::LimitedDevices limited(less);
    EXPECT_EQ(shared(), 64 << 10);
    std::thread([&] { EXPECT_EQ(shared(), asked); }).join();
    less.shared_memory = 80 << 10;
    const cuda::LimitedDevices wider(less);
    EXPECT_EQ(shared(), 64 << 10);
  }
  EXPECT_EQ(shared(), asked);
}

// A move without a stream waits for what the default stream of the source has still to do.
TEST_F(TwoDevices, AMoveSeesWhatWasQueuedBefore) {
  const Device first = Device::cuda(0);
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), DType::f32, first);
  const Tensor ids = some_ids(2, 600).to(first);
  StackState state = model.make_state(2);
  for (int i = 0; i < 20; ++i) model.forward(ids, state, Logits::none(), default_stream(first));
  const StackState moved = state.to(Device::cuda(1), DType::f32);
  default_stream(first).synchronize();
  for (std::size_t i = 0; i < state.layers.size(); ++i) {
    expect_same(moved.layers[i], state.layers[i], "layer " + std::to_string(i));
  }
}

}  // namespace
}  // namespace mamba
#endif
