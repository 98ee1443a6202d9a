# Install and export: find_package(mamba) gives mamba::mamba, and mamba::data_parallel where it was built; pkg-config
# mamba-cpp gives the first. Components: runtime, what a program needs that was linked to a shared library; development;
# programs, which examples/ installs.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mamba)
install(TARGETS ${mamba_libraries} EXPORT mamba_targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mamba DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
install(EXPORT mamba_targets NAMESPACE mamba:: DESTINATION ${package_dir} COMPONENT development)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/THIRD_PARTY_NOTICES.md
  DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/mamba-cpp COMPONENT runtime)

# A shared library has found what it needs; whoever links a static one finds it once more.
get_target_property(library_type mamba TYPE)
set(mamba_is_static OFF)
if(library_type STREQUAL "STATIC_LIBRARY")
  set(mamba_is_static ON)
endif()

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/mamba-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/mamba-config-version.cmake
  DESTINATION ${package_dir} COMPONENT development)
if(mamba_is_static AND mamba_has_data_parallel)
  install(FILES ${CMAKE_CURRENT_LIST_DIR}/FindNCCL.cmake DESTINATION ${package_dir} COMPONENT development)
endif()

# The folder of mamba-cpp.pc says where the rest is, so that an installation may be moved.
set(pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
foreach(part IN ITEMS LIB INCLUDE)
  file(RELATIVE_PATH pc_to_${part} ${CMAKE_INSTALL_PREFIX}/${pc_dir} ${CMAKE_INSTALL_FULL_${part}DIR})
endforeach()
set(pc_private)
if(mamba_is_static)
  set(pc_libs -pthread)
  if(mamba_has_cuda)
    list(APPEND pc_libs -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lcublasLt -lrt -ldl)
  endif()
  list(JOIN pc_libs " " pc_libs)
  set(pc_private "Requires.private: libhwy icu-i18n icu-uc\nLibs.private: ${pc_libs}\n")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/mamba-cpp.pc.in ${CMAKE_CURRENT_BINARY_DIR}/mamba-cpp.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mamba-cpp.pc DESTINATION ${pc_dir} COMPONENT development)
