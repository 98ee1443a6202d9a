// A step of several generators: their tokens through the model, the next tokens chosen, and on
// their way to the host.
#include <mamba/grad_ops.hpp>

#include "detail/backend.hpp"
#include "host/generate/generator_slots.hpp"

namespace mamba {

// ---- TokensOut --------------------------------------------------------------------------------

TokensOut::TokensOut(Device device, std::int64_t capacity) : device_(device) {
  for (std::size_t i = 0; i < host_.size(); ++i) {
    host_[i] =
        device.is_cuda() ? Tensor::pinned({capacity}, DType::i32) : Tensor({capacity}, DType::i32);
    if (device.is_cuda()) arrived_[i] = cuda::make_event(device);
  }
}

TokensOut::~TokensOut() {
  for (void* event : arrived_) {
    if (event != nullptr) cuda::destroy_event(device_, event);
  }
}

void TokensOut::send(const Tensor& tokens, Stream& stream) {
  const std::size_t place = sent_++ % host_.size();
  copy(tokens, host_[place], stream);
  if (arrived_[place] != nullptr) {
    cuda::record_event(arrived_[place], device_, stream.cuda_stream());
  }
}

const std::int32_t* TokensOut::receive() {
  const std::size_t place = received_++ % host_.size();
  if (arrived_[place] != nullptr) cuda::wait_event(arrived_[place]);
  return host_[place].data<std::int32_t>();
}

// ---- steps ------------------------------------------------------------------------------------

SlotRows GeneratorSlots::rows_of(const std::vector<std::int32_t>& rows) {
  SlotRows result;
  result.count = static_cast<std::int64_t>(rows.size());
  result.leading = rows.back() + 1 == result.count;
  if (result.count == capacity()) return result;
  result.list = list_.view().rows(0, result.count);
  if (listed_ != rows) {
    copy(Tensor::from(rows, {result.count}), result.list, *stream);
    listed_ = rows;
  }
  return result;
}

void GeneratorSlots::feed(const SlotRows& rows, ConstTensorView ids) {
  Scratch scratch(*stream);
  LanguageModelOptions options;
  options.rows.read = rows.list;
  options.rows.write = rows.list;
  const TensorView target = rows.leading
                                ? logits.view().rows(0, rows.count)
                                : scratch.take(logits.shape().with(0, rows.count), DType::f32);
  model->forward(ids, state, Logits::last(target), *stream, options);
  if (rows.leading) return;
  CopyRows back;
  back.from = target;
  back.to = logits;
  back.to_rows = rows.list;
  run(back, *stream);
}

void GeneratorSlots::feed_chosen(const SlotRows& rows) {
  Scratch scratch(*stream);
  TensorView ids = token.view().rows(0, rows.count);
  if (!rows.leading) {
    ids = scratch.take({rows.count}, DType::i32);
    CopyRows gather;
    gather.from = token;
    gather.from_rows = rows.list;
    gather.to = ids;
    run(gather, *stream);
  }
  feed(rows, ids.reshape({rows.count, 1}));
}

void GeneratorSlots::choose(const SlotRows& rows) {
  Sample sample;
  sample.rows = rows.list;
  sample.logits = any_bias() ? add_bias() : logits.view();
  sample.seed = seed;
  sample.draws = draws;
  sample.seen = seen;
  sample.ids = token;
  sample.temperatures = temperature;
  sample.top_ks = top_k;
  sample.top_ps = top_p;
  sample.min_ps = min_p;
  sample.repetition_penalties = repetition_penalty;
  if (stream->device().is_cuda()) return run(sample, *stream);
  try {
    run(sample, *stream);
  } catch (const ArgumentError&) {  // a row without a finite logit; the others choose all the same
    choose_each(sample, rows);
  }
}

// All rows at once: the sum over the rows of a matrix of one row, added to what is there.
TensorView GeneratorSlots::add_bias() {
  copy(logits, biased, *stream);
  SumRows sum;
  sum.x = bias.view().reshape({1, bias.count()});
  sum.y = biased.view().reshape({biased.count()});
  sum.accumulate = true;
  run(sum, *stream);
  return biased;
}

// On the CPU, which refuses all rows for one. As on CUDA, a row that cannot choose gets id -1.
void GeneratorSlots::choose_each(Sample sample, const SlotRows& rows) {
  for (std::int64_t i = 0; i < rows.count; ++i) {
    std::int32_t row = rows.list ? rows.list.data<std::int32_t>()[i] : static_cast<std::int32_t>(i);
    const TensorView one(&row, {1}, DType::i32);
    sample.rows = one;
    try {
      run(sample, *stream);
    } catch (const ArgumentError&) {
      token.data<std::int32_t>()[row] = -1;
    }
  }
}

void GeneratorSlots::step(const SlotRows& rows) {
  constexpr std::size_t most_graphs = 64;  // a few hundred kilobytes each
  const auto work = [&] {
    feed_chosen(rows);
    choose(rows);
  };
  if (!records()) return work();
  const void* scratch_begin = Scratch(*stream).take({1}, DType::i32).data();
  const StepKey key{rows.leading, rows.count, any_bias(), scratch_begin};
  const auto known = graphs_.find(key);
  if (known == graphs_.end()) {
    if (graphs_.size() == most_graphs) {
      stream->synchronize();
      graphs_.clear();
    }
    work();
    graphs_[key] = std::nullopt;
    return;
  }
  if (!known->second) {
    known->second = Graph::record(*stream, [&](Stream&) { work(); });
  }
  known->second->replay();
}

std::exception_ptr GeneratorSlots::no_token() {
  try {
    stream->synchronize();
  } catch (const ArgumentError&) {
    return std::current_exception();
  }
  return std::make_exception_ptr(
      ArgumentError("sample", "logits", "a finite largest value in each row", "none"));
}

void GeneratorSlots::unchoose(std::int64_t row, std::int32_t id, const SamplingOptions& options) {
  const auto decrement = [&](const TensorView& view) {
    Tensor value(view.shape(), DType::i32);
    copy(view, value, *stream);
    stream->synchronize();
    auto& number = *value.data<std::int32_t>();
    number = static_cast<std::int32_t>(static_cast<std::uint32_t>(number) - 1);
    copy(value, view, *stream);
    stream->synchronize();
  };
  if (options.temperature > 0) decrement(draws.view().rows(row, 1));
  decrement(seen.view().rows(row, 1).columns(id, 1));
}

}  // namespace mamba
