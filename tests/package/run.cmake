# cmake -D MODE=package|subdirectory -D SOURCE=... -D BUILD=... -D SCRATCH=... -D CXX=... -D FLAGS=... -P run.cmake
# Builds and runs the consumer against an installation into a folder of its own, or against the source tree.
function(must)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "failed: ${ARGV}\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${SCRATCH})
if(MODE STREQUAL "package")
  must(${CMAKE_COMMAND} --install ${BUILD} --prefix ${SCRATCH}/installed)
  set(how -DCMAKE_PREFIX_PATH=${SCRATCH}/installed)
else()
  set(how -DMAMBA_SOURCE_DIR=${SOURCE} -DMAMBA_CUDA=OFF)
  # Configured with nothing said, which is when a library might choose in the program's place.
  must(${CMAKE_COMMAND} -S ${SOURCE}/tests/package -B ${SCRATCH}/plain -G Ninja -DCMAKE_CXX_COMPILER=${CXX} ${how})
endif()
must(${CMAKE_COMMAND} -S ${SOURCE}/tests/package -B ${SCRATCH}/build -G Ninja
     -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_FLAGS=${FLAGS}" ${how})
must(${CMAKE_COMMAND} --build ${SCRATCH}/build)
must(${SCRATCH}/build/consumer ${SCRATCH}/state.safetensors)
if(EXISTS ${SCRATCH}/build/several)
  must(${SCRATCH}/build/several)
endif()
if(EXISTS ${SCRATCH}/installed/bin/mamba-lm)
  must(${SCRATCH}/installed/bin/mamba-lm --version)
  must(${SCRATCH}/installed/bin/mamba-lm generate --prompt "In the beginning" -n 20)
endif()
