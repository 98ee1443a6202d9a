# `cpack -G DEB` in the folder of a shared build makes libmamba-cpp0.1, libmamba-cpp-dev and mamba-cpp-tools, one of each
# component. Configured with CMAKE_INSTALL_PREFIX=/usr, the library lies where Debian has those of this processor.
# scripts/deb_check.sh builds the packages and tries them.
set(CPACK_GENERATOR DEB)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL runtime development)
if(MAMBA_EXAMPLES)
  list(APPEND CPACK_COMPONENTS_ALL programs)
endif()
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_NAME mamba-cpp)
set(CPACK_PACKAGE_CONTACT "The mamba.cpp maintainers <maintainers@mamba-cpp.invalid>" CACHE STRING
  "Maintainer field of the packages")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 0.1)  # before any that Debian itself might make
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR})
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Mamba state space models with their state in the caller's hands")

set(runtime_package libmamba-cpp${mamba_soversion})
set(with_runtime "${runtime_package} (= ${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE})")

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME ${runtime_package})
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION "Mamba-1 and Mamba-2 in C++17, with their recurrent state as a value: make it,
copy it, branch it, save it, go on from it in another process.

This package has the library that programs are linked to.")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_BINARY_DIR}/triggers)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/triggers "activate-noawait ldconfig\n")

set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libmamba-cpp-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${with_runtime}")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "Headers of the library, and what CMake and pkg-config read to find it.")

set(CPACK_DEBIAN_PROGRAMS_PACKAGE_NAME mamba-cpp-tools)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_DEPENDS "${with_runtime}")
set(CPACK_DEBIAN_PROGRAMS_DESCRIPTION "Programs: mamba-lm writes text, mamba-server does so for many at once over
HTTP, train-lm and mamba-rl train, beam_search and best_of_n are examples. A
small model of bytes comes with them.")

# What every Debian package has of documentation.
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_CURRENT_BINARY_DIR}/debian_docs.cmake)
configure_file(${CMAKE_CURRENT_LIST_DIR}/debian_docs.cmake.in ${CPACK_PRE_BUILD_SCRIPTS} @ONLY)
include(CPack)
