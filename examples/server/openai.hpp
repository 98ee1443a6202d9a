// The interface of OpenAI's clients: completions and chats.
#pragma once

#include <memory>

#include "core.hpp"

namespace server {

// ApiError where the request is refused; what comes later goes to `reply`.
Cancel complete(Core& core, const Request& request, const std::shared_ptr<Reply>& reply);
Cancel chat(Core& core, const Request& request, const std::shared_ptr<Reply>& reply);

}  // namespace server
