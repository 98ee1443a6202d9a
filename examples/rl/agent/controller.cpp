#include "rl/agent/controller.hpp"

#include "rl/agent/gru_controller.hpp"
#include "rl/agent/mamba_controller.hpp"

namespace mamba_rl {

std::unique_ptr<Controller> Controller::make(const ControllerConfig& config, mamba::Device device) {
  if (config.kind == "mamba" || config.kind == "mamba2") {
    return std::make_unique<MambaController>(config, device);
  }
  if (config.kind == "gru") return std::make_unique<GruController>(config, device);
  throw mamba::ArgumentError("Controller", "kind", "mamba, mamba2 or gru", config.kind);
}

}  // namespace mamba_rl
