// States as resources: made, gone on from, gone back in, looked into, downloaded and uploaded. None
// ever changes.
#pragma once

#include <memory>
#include <string>

#include "core.hpp"

namespace server {

Json entry_json(const StateEntry& entry);
// The ApiError of a request for a state that is not kept.
[[noreturn]] void state_not_there(const std::string& id);

// ApiError where the request is refused; what comes later goes to `reply`.
Cancel make_state(Core& core, const Request& request, const std::shared_ptr<Reply>& reply);
Cancel upload_state(Core& core, const Request& request, const std::shared_ptr<Reply>& reply);
Cancel generate(Core& core, const std::string& id, const Request& request,
                const std::shared_ptr<Reply>& reply);
Cancel rewind(Core& core, const std::string& id, const Request& request,
              const std::shared_ptr<Reply>& reply);
Cancel download_state(Core& core, const std::string& id, const Request& request,
                      const std::shared_ptr<Reply>& reply);
// `what`: "text", "layers", "map" (with its layer in `query`).
Cancel view_state(Core& core, const std::string& id, const std::string& what,
                  const std::string& query, const std::shared_ptr<Reply>& reply);
Cancel difference(Core& core, const std::string& a, const std::string& b,
                  const std::shared_ptr<Reply>& reply);

}  // namespace server
