# cmake -D SOURCE=... -D SCRATCH=... -D CXX=... -P cuda_choice.cmake
# What cmake/Cuda.cmake decides with an nvcc that is too old, one that is none, and lists of architectures.
file(REMOVE_RECURSE ${SCRATCH})
file(WRITE ${SCRATCH}/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(choice LANGUAGES CXX)
set(PROJECT_SOURCE_DIR ${SOURCE})
include(${SOURCE}/cmake/Cuda.cmake)
")

# Configures with ${ARGN}: the exit status is 0 or not as `works` says, and the output has `text`.
function(expect works text)
  file(REMOVE_RECURSE ${SCRATCH}/build)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${SCRATCH} -B ${SCRATCH}/build -G Ninja -DCMAKE_CXX_COMPILER=${CXX} ${ARGN}
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  string(FIND "${output}" "${text}" found)
  if((works AND NOT status EQUAL 0) OR (NOT works AND status EQUAL 0) OR found EQUAL -1)
    message(FATAL_ERROR "with ${ARGN}: expected '${text}' (works: ${works}), got status ${status} and\n${output}")
  endif()
endfunction()

function(make_compiler name text)
  file(WRITE ${SCRATCH}/${name} "#!/bin/sh\necho '${text}'\n")
  file(CHMOD ${SCRATCH}/${name} PERMISSIONS OWNER_READ OWNER_EXECUTE)
endfunction()
make_compiler(old_nvcc "Cuda compilation tools, release 11.8, V11.8.89")
make_compiler(no_nvcc "some clang version 14")

expect(TRUE "without CUDA (nvcc 11.8 is older than 12.1)" -DMAMBA_CUDA=AUTO -DCMAKE_CUDA_COMPILER=${SCRATCH}/old_nvcc)
expect(FALSE "MAMBA_CUDA=ON, but nvcc 11.8 is older" -DMAMBA_CUDA=ON -DCMAKE_CUDA_COMPILER=${SCRATCH}/old_nvcc)
expect(TRUE "no_nvcc is not nvcc)" -DMAMBA_CUDA=AUTO -DCMAKE_CUDA_COMPILER=${SCRATCH}/no_nvcc)
find_program(NVCC nvcc PATHS /usr/local/cuda/bin)
if(NVCC)
  set(nvcc -DCMAKE_CUDA_COMPILER=${NVCC})
  expect(TRUE "without CUDA (CMAKE_CUDA_ARCHITECTURES has 75, and the kernels need 80 or later)" -DMAMBA_CUDA=AUTO ${nvcc}
    "-DCMAKE_CUDA_ARCHITECTURES=75\;90")
  expect(FALSE "has 70-real, and the kernels need 80" -DMAMBA_CUDA=ON ${nvcc} "-DCMAKE_CUDA_ARCHITECTURES=90\;70-real")
  expect(TRUE "architectures 80-real;90)" -DMAMBA_CUDA=ON ${nvcc})
  execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE version)
  if(version MATCHES "release 13.0")
    set(major "80-real;90-real;100-real;110-real;120-real;120-virtual")
    set(all "80-real;86-real;87-real;88-real;89-real;90-real;100-real;103-real;110-real;120-real;121-real;121-virtual")
  else()  # it knows others
    set(major "80-real;90-real")
    set(all "80-real;86-real")
  endif()
  expect(TRUE "architectures ${major}" -DMAMBA_CUDA=ON ${nvcc} -DCMAKE_CUDA_ARCHITECTURES=all-major)
  expect(TRUE "architectures ${all}" -DMAMBA_CUDA=ON ${nvcc} -DCMAKE_CUDA_ARCHITECTURES=all)
  expect(TRUE "architectures 90a)" -DMAMBA_CUDA=ON ${nvcc} -DCMAKE_CUDA_ARCHITECTURES=90a)
endif()
