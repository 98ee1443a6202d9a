#include <mamba/stream.hpp>

#include <algorithm>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <mamba/check.hpp>
#include <mamba/detail/constant_weights.hpp>

#include "detail/backend.hpp"
#include "detail/stream_access.hpp"

namespace mamba {

namespace {

constexpr int most_threads = 1024;

// What the error of a bad value says; in the order of BadValue, where the first are those that
// others may follow from: no token was chosen, and an embedding was asked for it.
struct BadValueText {
  const char* where;
  const char* name;
  const char* expected;
  const char* got;
};
constexpr BadValueText bad_value_texts[bad_value_kinds] = {
    {"sample", "logits", "a finite largest value in each row", "none"},
    {"embedding", "ids", "ids of the table", "one outside of it"},
    {"rows", "read or write", "rows of the state", "one outside of it"},
    {"sample", "rows", "rows of the logits", "one outside of them"},
    {"copy_rows", "rows", "rows of the tensor", "one outside of it"},
    {"cross_entropy", "targets", "targets below the vocabulary", "one above"},
    {"categorical", "actions", "actions of the distribution", "one outside of it"},
};

}  // namespace

struct Stream::Impl {
  Device device;
  std::unique_ptr<detail::Team> team;  // on the CPU
  void* cuda_stream = nullptr;
  bool owned = false;    // the CUDA stream is destroyed with this
  int* flags = nullptr;  // on CUDA: [bad_value_kinds], see BadValue
  // On CUDA: where synchronize(Device) marks what is queued. Shared, as it may wait for it longer
  // than the stream lives. With the lock of Live.
  std::shared_ptr<void> mark;
  bool recording = false;  // with the lock of Live
  std::shared_ptr<void> matmul;
  int constant_weights = 0;  // promises that live
  bool chain_begun = false;  // a kernel was launched since the outermost of them was made
  // The arena: blocks are kept, in order, until the stream ends. (block, offset) is the next free
  // byte.
  std::vector<Tensor> blocks;
  std::size_t block = 0;
  std::size_t offset = 0;
  std::vector<Tensor> hand_overs;  // the last is the largest; a recorded graph may know any

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  // `stream` becomes the CUDA stream, and flags and mark are made.
  void attach(void* stream, bool owns);
  void throw_bad_values();

  // The streams of all devices that live. The lock keeps a recording from beginning while a mark is
  // being set: it would be recorded.
  struct Live {
    std::mutex mutex;
    std::vector<Impl*> streams;

    static Live& all() {
      static Live& live = made();
      return live;
    }
    static Live& made();
  };
};

// Never freed: streams of static objects may end after any static object. CUDA does not survive
// fork(): in the copy of the process, no stream of a device has anything to wait for.
Stream::Impl::Live& Stream::Impl::Live::made() {
  static Live& live = *new Live;
  pthread_atfork([] { live.mutex.lock(); }, [] { live.mutex.unlock(); },
                 [] {
                   live.streams.clear();
                   live.mutex.unlock();
                 });
  return live;
}

Stream::Impl::~Impl() {
  if (!owned && !mark) return;  // of the CPU, or not attached
  {
    Live& live = Live::all();
    const std::lock_guard<std::mutex> lock(live.mutex);
    live.streams.erase(std::remove(live.streams.begin(), live.streams.end(), this),
                       live.streams.end());
  }
  cuda::end_stream(device, cuda_stream, owned);
  matmul.reset();
  if (flags != nullptr) cuda::release_pinned(flags);  // nothing writes them any more
}

void Stream::Impl::attach(void* stream, bool owns) {
  cuda_stream = stream;
  owned = owns;
  const Device on = device;
  mark = std::shared_ptr<void>(cuda::make_event(on),
                               [on](void* event) { cuda::destroy_event(on, event); });
  flags = static_cast<int*>(cuda::allocate_pinned(bad_value_kinds * sizeof(int)));
  std::fill_n(flags, bad_value_kinds, 0);
  Live& live = Live::all();
  const std::lock_guard<std::mutex> lock(live.mutex);
  live.streams.push_back(this);
}

Stream::Stream(Device device, int threads) : impl_(std::make_unique<Impl>()) {
  if (threads < 0) {
    throw ArgumentError("Stream", "threads", "at least 0", std::to_string(threads));
  }
  impl_->device = device;
  if (device.is_cuda()) impl_->attach(cuda::make_stream(device), true);
  const auto cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  impl_->team = std::make_unique<detail::Team>(
      device.is_cuda() ? 1 : std::min(threads > 0 ? threads : cores, most_threads));
}

Stream::Stream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

Stream Stream::borrow(Device device, void* cuda_stream) {
  if (device.is_cpu()) {
    throw ArgumentError("Stream::borrow", "device", "a CUDA device", device.name());
  }
  cuda::check_present("Stream::borrow", device);
  auto impl = std::make_unique<Impl>();
  impl->device = device;
  impl->attach(cuda_stream, false);
  impl->team = std::make_unique<detail::Team>(1);
  return Stream(std::move(impl));
}

Stream::Impl& Stream::impl() const {
  if (!impl_) throw ArgumentError("Stream", "stream", "a stream", "one that was moved from");
  return *impl_;
}

Device Stream::device() const { return impl().device; }
int Stream::threads() const { return impl().team->size(); }
void* Stream::cuda_stream() const { return impl().cuda_stream; }

void Stream::synchronize() {
  if (impl().device.is_cpu()) return;
  cuda::synchronize(impl_->device, impl_->cuda_stream);
  impl_->throw_bad_values();
}

void synchronize(Device device) {
  if (device.is_cpu()) return;
  std::vector<std::shared_ptr<void>> marks;
  {
    Stream::Impl::Live& live = Stream::Impl::Live::all();
    const std::lock_guard<std::mutex> lock(live.mutex);
    for (Stream::Impl* stream : live.streams) {
      if (stream->device != device) continue;
      marks.push_back(stream->mark);
      if (stream->recording || cuda::is_recorded(device, stream->cuda_stream)) continue;
      cuda::record_event(stream->mark.get(), device, stream->cuda_stream);
    }
  }
  for (const std::shared_ptr<void>& mark : marks) cuda::wait_event(mark.get());
}

void StreamAccess::wait_for(const ConstTensorView& operand) {
  if (operand.device().is_cuda()) return synchronize(operand.device());
  std::vector<Device> devices;
  {
    Stream::Impl::Live& live = Stream::Impl::Live::all();
    const std::lock_guard<std::mutex> lock(live.mutex);
    for (const Stream::Impl* stream : live.streams) {
      if (std::find(devices.begin(), devices.end(), stream->device) == devices.end()) {
        devices.push_back(stream->device);
      }
    }
  }
  if (devices.empty() || !cuda::is_pinned(devices.front(), operand.data())) return;
  for (const Device device : devices) synchronize(device);
}

// What was queued before is marked here; until the recording ends nothing more is.
StreamAccess::Recording::Recording(Stream& stream) : stream_(stream) {
  Stream::Impl& impl = *stream.impl_;
  const std::lock_guard<std::mutex> lock(Stream::Impl::Live::all().mutex);
  cuda::record_event(impl.mark.get(), impl.device, impl.cuda_stream);
  cuda::begin_recording(stream);
  impl.recording = true;
}

StreamAccess::Recording::~Recording() {
  const std::lock_guard<std::mutex> lock(Stream::Impl::Live::all().mutex);
  stream_.impl_->recording = false;
}

void Stream::Impl::throw_bad_values() {
  const BadValueText* first = nullptr;
  std::string got;
  for (int kind = 0; kind < bad_value_kinds; ++kind) {
    if (std::exchange(flags[kind], 0) == 0) continue;
    const BadValueText& text = bad_value_texts[kind];
    if (first == nullptr) {
      first = &text;
      got = text.got;
    } else {
      got += "; " + std::string(text.where) + ": " + text.name + ": expected " + text.expected +
             ", got " + text.got;
    }
  }
  if (first != nullptr) throw ArgumentError(first->where, first->name, first->expected, got);
}

int* StreamAccess::flag(Stream& stream, BadValue kind) {
  int* flags = stream.impl_->flags;
  return flags == nullptr ? nullptr : flags + static_cast<int>(kind);
}

bool StreamAccess::constant_weights(const Stream& stream) {
  return stream.impl_->constant_weights > 0;
}

bool StreamAccess::begins_early(Stream& stream) {
  return stream.impl_->constant_weights == 0 || std::exchange(stream.impl_->chain_begun, true);
}

detail::Team& StreamAccess::team(Stream& stream) { return *stream.impl_->team; }
std::shared_ptr<void>& StreamAccess::matmul(Stream& stream) { return stream.impl_->matmul; }

TensorView StreamAccess::hand_over(Stream& stream, std::int64_t count) {
  std::vector<Tensor>& all = stream.impl_->hand_overs;
  if (all.empty() || all.back().count() < count) {
    all.push_back(Tensor::zeros({count}, DType::i32, stream.device()));
  }
  return all.back();
}

Stream& default_stream(Device device) {
  thread_local std::deque<Stream> streams;  // a reference given out must stay good
  for (Stream& stream : streams) {
    if (stream.device() == device) return stream;
  }
  return streams.emplace_back(device);
}

detail::ConstantWeights::ConstantWeights(Stream& stream) : stream_(stream) {
  if (stream.impl().constant_weights++ == 0) stream.impl_->chain_begun = false;
}

detail::ConstantWeights::~ConstantWeights() { --stream_.impl_->constant_weights; }

// ---- scratch ----------------------------------------------------------------------------------

Scratch::Scratch(Stream& stream)
    : stream_(stream), block_(stream.impl().block), offset_(stream.impl_->offset) {}

Scratch::~Scratch() {
  stream_.impl_->block = block_;
  stream_.impl_->offset = offset_;
}

TensorView Scratch::take(const Shape& shape, DType dtype) {
  constexpr std::size_t alignment = 256;
  constexpr std::size_t smallest_block = std::size_t{1} << 20;
  Stream::Impl& arena = *stream_.impl_;
  const auto bytes = static_cast<std::size_t>(check::bytes("Scratch::take", "shape", shape, dtype));
  const std::size_t needed = (bytes + alignment - 1) / alignment * alignment;
  const auto size_at = [&](std::size_t i) {
    return static_cast<std::size_t>(arena.blocks[i].bytes());
  };
  while (arena.block < arena.blocks.size() && size_at(arena.block) - arena.offset < needed) {
    ++arena.block;
    arena.offset = 0;
  }
  if (arena.block == arena.blocks.size()) {
    const std::size_t last = arena.blocks.empty() ? 0 : size_at(arena.blocks.size() - 1);
    const std::size_t size = std::max({needed, 2 * last, smallest_block});
    arena.blocks.emplace_back(Shape{static_cast<std::int64_t>(size / 4)}, DType::f32, arena.device);
  }
  char* base = static_cast<char*>(arena.blocks[arena.block].view().data());
  TensorView view(base + arena.offset, shape, dtype, arena.device);
  arena.offset += needed;
  return view;
}

}  // namespace mamba
