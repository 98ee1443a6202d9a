# Decides whether the CUDA kernels are built, says so in one line, and sets mamba_has_cuda.
#
# CMAKE_CUDA_ARCHITECTURES: for whom. As it comes, machine code for 8.0 (which 8.6 and 8.9 run too) and 9.0, and PTX of
# 9.0, which the driver translates for what follows. `all-major`, machine code for each generation from 8.0 that nvcc
# knows and PTX of the newest, is for releases: with CUDA 13 it compiles five times where 80-real;90 compiles twice.
# Kernels of 9.0 (clusters, launches that begin early) run where code for 90 or later was built and the device is such a
# one; elsewhere others take their place, so every list from 80 on is right. Files named *_90a.cu are compiled for 9.0
# alone, where that is in the list (mamba_has_sm_90a).
set(mamba_has_cuda OFF)
set(mamba_has_sm_90a OFF)

# Sets `reason` where the compiler cannot build the kernels. Asked before the language is enabled: an nvcc that does not
# know an architecture would end the configuration there.
function(mamba_check_nvcc)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT version MATCHES "release ([0-9.]+)")
    set(reason "${CMAKE_CUDA_COMPILER} is not nvcc" PARENT_SCOPE)
  elseif(CMAKE_MATCH_1 VERSION_LESS 12.1)
    set(reason "nvcc ${CMAKE_MATCH_1} is older than 12.1" PARENT_SCOPE)
  endif()
endfunction()

# Replaces `all` and `all-major` in CMAKE_CUDA_ARCHITECTURES by what nvcc knows from 80 on, and sets `reason` where one
# is older.
function(mamba_check_architectures)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "^all(-major)?$")
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
    string(REGEX MATCHALL "[0-9]+" known "${known}")
    list(SORT known COMPARE NATURAL)
    set(list)
    set(last_major 0)
    foreach(number IN LISTS known)
      math(EXPR major "${number} / 10")
      if(number GREATER_EQUAL 80 AND (CMAKE_CUDA_ARCHITECTURES STREQUAL "all" OR NOT major EQUAL last_major))
        list(APPEND list ${number}-real)
        set(newest ${number})
        set(last_major ${major})
      endif()
    endforeach()
    set(CMAKE_CUDA_ARCHITECTURES ${list} ${newest}-virtual PARENT_SCOPE)
    return()
  endif()
  foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(architecture MATCHES "^([0-9]+)" AND CMAKE_MATCH_1 LESS 80)
      set(reason "CMAKE_CUDA_ARCHITECTURES has ${architecture}, and the kernels need 80 or later" PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

set(reason)
if(MAMBA_CUDA STREQUAL "OFF")
  set(reason "MAMBA_CUDA=OFF")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(reason "no nvcc found")
  else()
    mamba_check_nvcc()
  endif()
endif()
if(NOT reason)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
  mamba_check_architectures()
endif()
if(NOT reason)
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(NOT TARGET CUDA::cudart_static OR NOT TARGET CUDA::cublasLt)
    set(reason "nvcc ${CMAKE_CUDA_COMPILER_VERSION} has no libcudart_static or no libcublasLt beside it")
  endif()
endif()
if(NOT reason)
  set(CMAKE_CUDA_STANDARD 17)
  # ptxas says what each kernel takes; the launcher keeps it beside the object for check_ptxas.py.
  set(CMAKE_CUDA_COMPILER_LAUNCHER
    ${PROJECT_SOURCE_DIR}/scripts/keep_ptxas_report.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set(mamba_has_cuda ON)
  # `native` may be 9.0: which kernels a device runs is asked of it.
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)(90a?(-real|-virtual)?|native)(;|$)")
    set(mamba_has_sm_90a ON)
  endif()
endif()

if(mamba_has_cuda)
  message(NOTICE "mamba: with CUDA (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES})")
elseif(MAMBA_CUDA STREQUAL "ON")
  message(FATAL_ERROR "mamba: MAMBA_CUDA=ON, but ${reason}")
else()
  message(NOTICE "mamba: without CUDA (${reason})")
endif()
