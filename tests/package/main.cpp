// A C++ program with a Mamba in it: remembers, saves what it remembers, and goes on; it knows an
// error of the library by its type.
#include <mamba/mamba.hpp>

#include <cstdio>
#include <cstring>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  mamba::LayerConfig config;
  config.d_model = 16;
  const mamba::Layer layer = mamba::Layer::random(config, 1);
  mamba::MambaState state = layer.make_state(1);
  const mamba::Tensor x = mamba::Tensor::from(std::vector<float>(2 * 16, 0.5f), {1, 2, 16});
  layer.forward(x, state);
  mamba::save(argv[1], state);
  const mamba::Tensor y = layer.forward(x, state);
  mamba::MambaState again = std::move(mamba::load_state(argv[1]).state.layers[0]);
  const mamba::Tensor z = layer.forward(x, again);
  const bool same = std::memcmp(y.data<float>(), z.data<float>(), 2 * 16 * sizeof(float)) == 0;
  try {
    layer.forward(mamba::Tensor::zeros({1, 2, 8}, mamba::DType::f32), state);
    return 1;
  } catch (const mamba::ArgumentError&) {
  }
  std::printf("mamba %s: %s\n", mamba::version, same ? "the same" : "different");
  return same ? 0 : 1;
}
