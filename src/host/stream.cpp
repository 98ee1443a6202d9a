#include <mamba/stream.hpp>

#include <algorithm>
#include <deque>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <mamba/check.hpp>

#include "detail/backend.hpp"
#include "detail/stream_access.hpp"

namespace mamba {

namespace {
constexpr int most_threads = 1024;  // far below what a Team's ticket can count
}

struct Stream::Impl {
  Device device;
  std::unique_ptr<detail::Team> team;  // on the CPU
  void* cuda_stream = nullptr;
  bool owned = false;    // the CUDA stream is destroyed with this
  int* flags = nullptr;  // on CUDA: [bad_value_kinds], see BadValue
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
  ~Impl() {
    matmul.reset();
    if (flags != nullptr) cuda::release_pinned(flags);
    if (owned) cuda::destroy_stream(device, cuda_stream);
  }

  void make_flags() {
    flags = static_cast<int*>(cuda::allocate_pinned(bad_value_kinds * sizeof(int)));
    std::fill_n(flags, bad_value_kinds, 0);
  }
  void throw_bad_values();
};

Stream::Stream(Device device, int threads) : impl_(std::make_unique<Impl>()) {
  if (threads < 0) {
    throw ArgumentError("Stream", "threads", "at least 0", std::to_string(threads));
  }
  impl_->device = device;
  if (device.is_cuda()) {
    impl_->cuda_stream = cuda::make_stream(device);
    impl_->owned = true;
    impl_->make_flags();
  }
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
  impl->cuda_stream = cuda_stream;
  impl->team = std::make_unique<detail::Team>(1);
  impl->make_flags();
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

void Stream::Impl::throw_bad_values() {
  const auto found = [&](BadValue kind) {
    return std::exchange(flags[static_cast<int>(kind)], 0) != 0;
  };
  // First what the others may follow from: no token was chosen, and an embedding was asked for it.
  if (found(BadValue::logits)) {
    throw ArgumentError("sample", "logits", "a finite largest value in each row", "none");
  }
  if (found(BadValue::token_id)) {
    throw ArgumentError("embedding", "ids", "ids of the table", "one outside of it");
  }
  if (found(BadValue::state_row)) {
    throw ArgumentError("rows", "read or write", "rows of the state", "one outside of it");
  }
  if (found(BadValue::sampled_row)) {
    throw ArgumentError("sample", "rows", "rows of the logits", "one outside of them");
  }
  if (found(BadValue::copied_row)) {
    throw ArgumentError("copy_rows", "rows", "rows of the tensor", "one outside of it");
  }
  if (found(BadValue::target)) {
    throw ArgumentError("cross_entropy", "targets", "targets below the vocabulary", "one above");
  }
  if (found(BadValue::action)) {
    throw ArgumentError("categorical", "actions", "actions of the distribution",
                        "one outside of it");
  }
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

ConstantWeights::ConstantWeights(Stream& stream) : stream_(stream) {
  if (stream.impl().constant_weights++ == 0) stream.impl_->chain_begun = false;
}

ConstantWeights::~ConstantWeights() { --stream_.impl_->constant_weights; }

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
