// Which sanitizer this build has: 0 or 1 each, as g++ or as clang++ says it.
#pragma once

#if defined(__has_feature)
#define MAMBA_HAS_FEATURE(feature) __has_feature(feature)
#else
#define MAMBA_HAS_FEATURE(feature) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || MAMBA_HAS_FEATURE(address_sanitizer)
#define MAMBA_ADDRESS_SANITIZER 1
#else
#define MAMBA_ADDRESS_SANITIZER 0
#endif

#if defined(__SANITIZE_THREAD__) || MAMBA_HAS_FEATURE(thread_sanitizer)
#define MAMBA_THREAD_SANITIZER 1
#else
#define MAMBA_THREAD_SANITIZER 0
#endif
