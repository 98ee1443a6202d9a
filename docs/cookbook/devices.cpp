// A state that moves between devices.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  // [begin]
  const Device device = cuda_device_count() > 0 ? Device::cuda() : Device::cpu();
  const LanguageModel here = LanguageModel::load(argv[1], DType::f32);
  const LanguageModel there = LanguageModel::load(argv[1], DType::f32, device);

  StackState state = here.make_state(1);
  read(here, {"And the king said"}, state);
  StackState moved = state.to(device);              // a copy; the first one stays where it is
  StackState back = moved.to(Device::cpu());        // to the bit
  StackState half = state.to(device, DType::bf16);  // for a model in bf16; ssm stays f32

  const std::vector<float> expected = read(here, {" unto him"}, state);
  claims.equal("there and back it is the same state", expected, read(here, {" unto him"}, back));
  claims.close("it goes on there as it would here", expected, read(there, {" unto him"}, moved));
  // [end]
  claims.that("what is converted is the convolution's memory alone",
              half.dtype() == DType::bf16 && half.layers[0].ssm.dtype() == DType::f32);
  std::printf("moved to %s\n", device.name().c_str());
  return claims.exit_code();
}
