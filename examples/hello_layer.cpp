// One Mamba layer whose memory is a value in your hands. Start here.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include <mamba/mamba.hpp>

int main() {
  mamba::LayerConfig config;
  config.d_model = 64;  // channels of input and output; everything else has the published default
  const mamba::Layer layer = mamba::Layer::random(config, /*seed=*/1);

  // Ten steps of one sequence: [batch, time, channel].
  std::vector<float> values(10 * 64);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::sin(0.1f * static_cast<float>(i));
  const mamba::Tensor x = mamba::Tensor::from(values, {1, 10, 64});

  // The layer never changes. What it remembers of a sequence is the state: you make it and pass it.
  mamba::MambaState state = layer.make_state(/*batch=*/1);
  for (int t = 0; t < 5; ++t) layer.forward(x.view().steps(t, 1), state);

  // It does not grow with the sequence, so it is cheap to keep - in memory by clone(), or in a
  // file.
  mamba::save("hello_layer.safetensors", state);
  const mamba::Tensor y = layer.forward(x.view().steps(5, 5), state);

  // Later, perhaps in another process: load it and go on where it was saved.
  mamba::MambaState restored =
      std::move(mamba::load_state("hello_layer.safetensors").state.layers[0]);
  const mamba::Tensor again = layer.forward(x.view().steps(5, 5), restored);

  const bool same = std::memcmp(y.data<float>(), again.data<float>(), y.bytes()) == 0;
  std::printf("a state of %lld bytes, saved and restored: the continuation is %s\n",
              static_cast<long long>(restored.bytes()), same ? "the same to the bit" : "DIFFERENT");
  std::remove("hello_layer.safetensors");
  return same ? 0 : 1;
}
