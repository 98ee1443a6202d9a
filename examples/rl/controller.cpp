#include "controller.hpp"

#include "gru_controller.hpp"
#include "mamba_controller.hpp"

namespace mamba_rl {

std::unique_ptr<Controller> Controller::make(const ControllerConfig& config, mamba::Device device) {
  if (config.kind == "mamba") return std::make_unique<MambaController>(config, device);
  if (config.kind == "gru") return std::make_unique<GruController>(config, device);
  throw mamba::ArgumentError("Controller", "kind", "mamba or gru", config.kind);
}

}  // namespace mamba_rl
